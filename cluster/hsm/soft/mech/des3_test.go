package mech

import (
	"bytes"
	"crypto/fips140"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The examples are of NIST: SP 800-67, appendix B, and the CAVP's TCBCMMT3.rsp, count 9.
const (
	des3Key   = "0123456789abcdef23456789abcdef01456789abcdef0123"
	des3Plain = "The qufck brown fox jump"
	des3ECB   = "a826fd8ce53b855fcce21c8112256fe668d5c05dd9b6b900"

	mmtKey    = "9b162a0df8ad9b61c88676e3d586434570b902f12a2046e0"
	mmtIV     = "ebd6fefe029ad54b"
	mmtPlain  = "f4c1c918e77355c8156f0fd778da52bff121ae5f2f44eaf4d2754946d0e10d1f18ce3a0176e69c18b7d20b6e0d0bee5eb5edfe4bd60e4d92adcd86bce72e76f94ee5cbcaa8b01cfddcea2ade575e66ac"
	mmtSealed = "1ff3c8709f403a8eff291aedf50c010df5c5ff64a8b205f1fce68564798897a390db16ee0d053856b75898009731da290fcc119dad987277aacef694872e880c4bb41471063fae05c89f25e4bd0cad6a"
)

func TestDES3OfNIST(t *testing.T) {
	k := secret(t, DES3, unhex(t, des3Key))
	p := CryptParams{Mechanism: DES3ECB}
	equal(t, "ecb", must(k.Encrypt(nil, p, []byte(des3Plain)))(t), unhex(t, des3ECB))
	equal(t, "ecb back", must(k.Decrypt(nil, p, unhex(t, des3ECB)))(t), []byte(des3Plain))
	k = secret(t, DES3, unhex(t, mmtKey))
	p = CryptParams{Mechanism: DES3CBC, IV: unhex(t, mmtIV)}
	equal(t, "cbc", must(k.Encrypt(nil, p, unhex(t, mmtPlain)))(t), unhex(t, mmtSealed))
	equal(t, "cbc back", must(k.Decrypt(nil, p, unhex(t, mmtSealed)))(t), unhex(t, mmtPlain))
	equal(t, "check value", k.KCV(), must(k.Encrypt(nil, CryptParams{Mechanism: DES3ECB}, make([]byte, 8)))(t)[:3])
}

func TestDES3Padded(t *testing.T) {
	k := secret(t, DES3, unhex(t, des3Key))
	for n := range 20 {
		data := bytes.Repeat([]byte{9}, n)
		for _, iv := range [][]byte{nil, []byte("eight by")} {
			p := CryptParams{Mechanism: DES3CBCPad, IV: iv}
			sealed := must(k.Encrypt(nil, p, data))(t)
			if want := n/8*8 + 8 + 8*(1-len(iv)/8); len(sealed) != want {
				t.Errorf("%d bytes become %d, want %d", n, len(sealed), want)
			}
			equal(t, "opened", must(k.Decrypt(nil, p, sealed))(t), data)
			sealed[len(sealed)-1] ^= 1
			if got, err := k.Decrypt(nil, p, sealed); err == nil && bytes.Equal(got, data) {
				t.Error("an altered ciphertext opens to what it was")
			}
		}
	}
}

func TestDES3Refusals(t *testing.T) {
	k, other := secret(t, DES3, unhex(t, des3Key)), secret(t, AES, make([]byte, 16))
	for _, c := range []struct {
		key  *SecretKey
		p    CryptParams
		n    int
		want error
	}{
		{k, CryptParams{Mechanism: AESGCM}, 8, ErrMechanism},
		{k, CryptParams{Mechanism: AESCBCPad}, 8, ErrMechanism},
		{k, CryptParams{Mechanism: AESCTR, IV: make([]byte, 16)}, 8, ErrMechanism},
		{other, CryptParams{Mechanism: DES3ECB}, 8, ErrMechanism},
		{other, CryptParams{Mechanism: DES3CBCPad}, 8, ErrMechanism},
		{k, CryptParams{Mechanism: DES3CBC, IV: make([]byte, 16)}, 8, ErrParam},
		{k, CryptParams{Mechanism: DES3CBCPad, IV: make([]byte, 16)}, 8, ErrParam},
		{k, CryptParams{Mechanism: DES3CBCPad, AAD: []byte("x")}, 8, ErrParam},
		{k, CryptParams{Mechanism: DES3ECB}, 9, ErrDataLen},
	} {
		if _, err := c.key.Encrypt(nil, c.p, make([]byte, c.n)); !errors.Is(err, c.want) {
			t.Errorf("%s with an IV of %d under %s: %v, want %v", c.p.Mechanism, len(c.p.IV), c.key.Spec().Type, err, c.want)
		}
	}
	if _, err := k.Wrap(nil, CryptParams{Mechanism: AESKWP}, make([]byte, 16)); !errors.Is(err, ErrMechanism) {
		t.Errorf("wrapping under des3: %v", err)
	}
	if _, err := k.MAC(SignParams{Mechanism: AESCMAC}, nil); !errors.Is(err, ErrMechanism) {
		t.Errorf("CMAC under des3: %v", err)
	}
}

// TestDES3Keys: a key of three parts has three parts, of odd parity.
func TestDES3Keys(t *testing.T) {
	for name, raw := range map[string]string{
		"even parity":   "0023456789abcdef23456789abcdef01456789abcdef0123",
		"one is two":    des3Key[:16] + des3Key[:16] + des3Key[32:],
		"two is three":  des3Key[:32] + des3Key[16:32],
		"one is three":  des3Key[:32] + des3Key[:16],
		"all are equal": des3Key[:16] + des3Key[:16] + des3Key[:16],
	} {
		if _, err := ParseSecret(DES3, unhex(t, raw)); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v, want %v", name, err, ErrKey)
		}
	}
	for _, n := range []int{0, 8, 16, 23, 25} {
		if _, err := ParseSecret(DES3, make([]byte, n)); !errors.Is(err, ErrKeySize) {
			t.Errorf("%d bytes: %v, want %v", n, err, ErrKeySize)
		}
	}
	for range 50 {
		g := must(Generate(nil, Spec{Type: DES3, Size: 24}))(t)
		if k := secret(t, DES3, g.Secret); !bytes.Equal(k.Raw(), g.Secret) {
			t.Error("a generated key is changed when it is read")
		}
	}
	derived := make([]byte, 24)
	for i := range derived {
		derived[i] = byte(i * 11)
	}
	if err := FinishDerived(DES3, derived); err != nil {
		t.Fatal(err)
	}
	secret(t, DES3, derived)
	if _, err := Generate(bytes.NewReader(make([]byte, 1000)), Spec{Type: DES3, Size: 24}); !errors.Is(err, errRandom) {
		t.Errorf("a source that repeats itself: %v", err)
	}
}

// TestDES3InFIPSMode runs itself in that mode, which a process has from its start.
func TestDES3InFIPSMode(t *testing.T) {
	if !fips140.Enabled() {
		c := exec.Command(os.Args[0], "-test.run", "^TestDES3InFIPSMode$", "-test.v")
		c.Env = append(os.Environ(), "GODEBUG=fips140=on")
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "in FIPS mode") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	t.Log("in FIPS mode")
	k := secret(t, DES3, unhex(t, des3Key))
	for _, p := range []CryptParams{{Mechanism: DES3ECB}, {Mechanism: DES3CBC, IV: make([]byte, 8)}, {Mechanism: DES3CBCPad}} {
		if _, err := k.Encrypt(nil, p, make([]byte, 8)); !errors.Is(err, ErrMechanism) {
			t.Errorf("%s encrypts: %v", p.Mechanism, err)
		}
	}
	if _, err := Generate(nil, Spec{Type: DES3, Size: 24}); !errors.Is(err, ErrMechanism) {
		t.Errorf("a key is made: %v", err)
	}
	if err := FinishDerived(DES3, make([]byte, 24)); !errors.Is(err, ErrMechanism) {
		t.Errorf("a key is derived: %v", err)
	}
	equal(t, "ecb", must(k.Decrypt(nil, CryptParams{Mechanism: DES3ECB}, unhex(t, des3ECB)))(t), []byte(des3Plain))
	k = secret(t, DES3, unhex(t, mmtKey))
	equal(t, "cbc", must(k.Decrypt(nil, CryptParams{Mechanism: DES3CBC, IV: unhex(t, mmtIV)}, unhex(t, mmtSealed)))(t), unhex(t, mmtPlain))
}
