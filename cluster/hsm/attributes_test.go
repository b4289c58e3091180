package hsm

import (
	"crypto/ecdh"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

func TestParseAttribute(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"sign", "true", "01"}, {"sign", "false", "00"}, {"sign", "1", "01"}, {"token", "true", "01"},
		{"id", "", ""}, {"id", "0xAB01", "ab01"}, {"id", "ab", "ab"}, {"id", strings.Repeat("00", MaxID), strings.Repeat("00", MaxID)},
		{"label", "", ""}, {"label", "my key", "6d79206b6579"}, {"label", "ключ", "d0bad0bbd18ed187"}, {"label", strings.Repeat("l", MaxLabel), strings.Repeat("6c", MaxLabel)},
	} {
		a := result(LookupAttribute(c.name))(t)
		b, err := ParseAttribute(a, c.value)
		if err != nil || hex.EncodeToString(b) != c.want {
			t.Errorf("%s=%q: %x, %v", c.name, c.value, b, err)
		}
		if again, err := ParseAttribute(a, FormatAttribute(a, b)); err != nil || string(again) != string(b) {
			t.Errorf("%s=%q prints as %q, which parses as %x, %v", c.name, c.value, FormatAttribute(a, b), again, err)
		}
	}
	for _, c := range [][2]string{
		{"sign", ""}, {"sign", "yes"}, {"sign", "2"}, {"id", "a"}, {"id", "xy"}, {"id", strings.Repeat("00", MaxID+1)}, {"label", strings.Repeat("l", MaxLabel+1)},
		{"label", "a\nb"}, {"label", "a\x7f"}, {"label", "\u009b31m"}, {"label", "\xff"}, {"class", "secret-key"}, {"modulus", "00"}, {"local", "true"},
	} {
		_, err := ParseAttribute(result(LookupAttribute(c[0]))(t), c[1])
		wantErr(t, c[0]+"="+c[1], err, ErrInvalid)
	}
}

func TestLookupAttribute(t *testing.T) {
	for _, s := range []string{"", "Sign", "ssign", "attr/sign"} {
		_, err := LookupAttribute(s)
		wantErr(t, s, err, ErrInvalid)
		if !strings.Contains(fmt.Sprint(err), "wrap-with-trusted") {
			t.Error("the error does not name those there are")
		}
	}
	if !slices.IsSortedFunc(attributes, func(a, b Attribute) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the table is not sorted")
	}
}

// One-way attributes merge as the table says they change.
func TestOneWayAgreesWithTheTable(t *testing.T) {
	for _, a := range attributes {
		winner, oneWayed := oneWay[AttributeRegister(a.Name)]
		if want := a.Stored && (a.Modifiable == ToTrue || a.Modifiable == ToFalse); oneWayed != want || oneWayed && winner != (a.Modifiable == ToTrue) {
			t.Errorf("%s: merges one way: %v, to %v; the table says %d", a.Name, oneWayed, winner, a.Modifiable)
		}
	}
}

func TestDefaultAttributes(t *testing.T) {
	for _, c := range []struct {
		class                    Class
		keyType                  string
		sign, sensitive, private bool
	}{
		{ClassSecret, "aes", true, true, true}, {ClassSecret, "generic-secret", true, true, true},
		{ClassPrivate, "rsa", false, true, true}, {ClassPublic, "ec", false, false, false}, {ClassPrivate, "ed25519", false, true, true},
	} {
		d := DefaultAttributes(c.class, c.keyType)
		want := map[string]string{"sign": fmt.Sprint(c.sign), "verify": fmt.Sprint(c.sign), "sensitive": fmt.Sprint(c.sensitive), "private": fmt.Sprint(c.private), "extractable": "true", "label": "", "trusted": "false", "destroyable": "true"}
		for name, v := range want {
			if d[name] != v {
				t.Errorf("%s %s: %s is %q, want %q", c.class, c.keyType, name, d[name], v)
			}
		}
		for _, a := range attributes {
			v, ok := d[a.Name]
			if ok != (a.Stored && !a.Optional) {
				t.Errorf("%s is stored: %v, and has a default: %v", a.Name, a.Stored, ok)
			}
			if ok {
				_ = result(ParseAttribute(a, v))(t)
			}
			if v == "true" && slices.Contains(a.Not, c.class) {
				t.Errorf("%s is true by default for %s", a.Name, c.class)
			}
		}
	}
}

func TestInfo(t *testing.T) {
	k := testKeyring(t, 1)
	r := aesRecord(t, k)
	r.Set("attr/id", []byte{0xab}, at(3))
	got := r.Info(Digest{7})
	want := KeyInfo{
		Ref: testRef, Class: ClassSecret, Type: "aes", Size: 32, Label: "payments", ID: "ab", CheckValue: "aabbcc", Owner: "alice", Shares: []string{"bob"}, Token: true,
		Created: r.Core.CreatedAt(), Digest: Digest{7},
		Attributes: map[string]string{
			"class": "secret-key", "key-type": "aes", "token": "true", "local": "true", "always-sensitive": "true", "never-extractable": "false",
			"check-value": "aabbcc", "key-length-bytes": "32", "label": "payments", "id": "ab", "sign": "true",
		},
	}
	equal(t, "info", got, want)
	got.SetToken(false)
	if got.Token || got.Attributes["token"] != "false" {
		t.Error("still a token key")
	}
	var empty KeyInfo
	empty.SetToken(true)
	if !empty.Token {
		t.Error("not a token key")
	}
}

func TestInfoOfPublicHalves(t *testing.T) {
	info := func(c Core) map[string]string { return (&Record{Core: c}).Info(Digest{}).Attributes }
	rsaDER := result(asn1.Marshal(struct {
		N *big.Int
		E int
	}{big.NewInt(0xc0ffee), 65537}))(t)
	type algorithm struct {
		OID  asn1.ObjectIdentifier
		Null asn1.RawValue
	}
	spki := result(asn1.Marshal(struct {
		Algorithm algorithm
		Key       asn1.BitString
	}{algorithm{oidRSA, asn1.NullRawValue}, asn1.BitString{Bytes: rsaDER, BitLength: len(rsaDER) * 8}}))(t)
	rsa := info(Core{Class: ClassPublic, Type: "rsa", Size: 2048, Public: spki})
	if rsa["modulus"] != "c0ffee" || rsa["public-exponent"] != "010001" || rsa["modulus-size-bits"] != "2048" {
		t.Errorf("rsa: %v", rsa)
	}
	point := result(ecdh.P256().NewPrivateKey(append(make([]byte, 31), 1)))(t).PublicKey()
	ec := info(Core{Class: ClassPublic, Type: "ec", Curve: "secp256r1", Public: result(x509.MarshalPKIXPublicKey(point))(t)})
	if ec["ec-point"] != "0441"+hex.EncodeToString(point.Bytes()) || ec["curve"] != "secp256r1" {
		t.Errorf("ec: %v", ec)
	}
	for _, bad := range [][]byte{nil, {0x30}, sequence(0, 91), append(slices.Clone(spki), 0)} {
		if a := info(Core{Class: ClassPublic, Type: "rsa", Public: bad}); a["modulus"]+a["ec-point"] != "" {
			t.Errorf("%x has attributes %v", bad, a)
		}
	}
}
