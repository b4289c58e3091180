package rpc

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// unhex reads hexadecimal digits; spaces and bars separate.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "|", "", "\n", "", "\t", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Frames as real clients send them: call, then what follows it.
var requests = []struct {
	name string
	call Call
	form Form
	body string // after the signature
	want Args
}{
	{"initialize", Initialize, FormOld,
		"01 00000029 505249564154452d474e4f4d452d4b455952494e472d504b435331312d50524f544f434f4c2d562d31 | 00 | 01 00000001 00",
		Args{[]byte(handshake), byte(0), []byte{0}}},
	{"slot list, size query", GetSlotList, FormOld, "00 00000000", Args{byte(0), Room{Query: true}}},
	{"slot list, room for 3", GetSlotList, FormOld, "01 00000003", Args{byte(1), Room{N: 3}}},
	{"open session", OpenSession, FormOld, "0000000000000007 0000000000000006", Args{uint64(7), uint64(6)}},
	{"login", Login, FormNew, "0000000000000001 0000000000000001 01 00000004 31323334", Args{uint64(1), uint64(1), []byte("1234")}},
	{"login, null pin", Login, FormNew, "0000000000000001 0000000000000001 00 00000000", Args{uint64(1), uint64(1), []byte(nil)}},
	{"find, empty template", FindObjectsInit, FormOld, "0000000000000002 00000000", Args{uint64(2), []Attribute{}}},
	{"get class", GetAttributeValue, FormOld, "0000000000000002 0000000000000001 00000001 00000000 00000008",
		Args{uint64(2), uint64(1), []AttributeRoom{{Type: ck.Class, Room: 8}}}},
	{"get wrap template, no room, old client", GetAttributeValue, FormOld, "0000000000000002 0000000000000001 00000002 40000211 00000000 00000000 00000008",
		Args{uint64(2), uint64(1), []AttributeRoom{{Type: ck.WrapTemplate}, {Type: ck.Class, Room: 8}}}},
	{"get wrap template, no room, 0.25.5", GetAttributeValue, FormOld, "0000000000000002 0000000000000001 00000002 40000211 00000000 00000000 00000000 00000008",
		Args{uint64(2), uint64(1), []AttributeRoom{{Type: ck.WrapTemplate}, {Type: ck.Class, Room: 8}}}},
	{"get wrap template with room for one", GetAttributeValue, FormNew, "0000000000000002 0000000000000001 00000001 40000211 00000018 00000001 00000104 00000001",
		Args{uint64(2), uint64(1), []AttributeRoom{{Type: ck.WrapTemplate, Room: 24, Nested: []AttributeRoom{{Type: ck.Encrypt, Room: 1}}}}}},
	{"sign init, old", SignInit, FormOld, "0000000000000001 00000040 ffffffff 0000000000000002",
		Args{uint64(1), Mechanism{Type: ck.SHA256RSAPKCS}, uint64(2)}},
	{"sign init, new", SignInit, FormNew, "0000000000000001 00000040 0000000000000002",
		Args{uint64(1), Mechanism{Type: ck.SHA256RSAPKCS}, uint64(2)}},
	{"pss, old", SignInit, FormOld, "0000000000000001 0000000d 0000000000000250 0000000000000002 0000000000000020 0000000000000002",
		Args{uint64(1), Mechanism{Type: ck.RSAPKCSPSS, Has: true, Nums: []uint64{0x250, 2, 32}}, uint64(2)}},
	{"pss, new", SignInit, FormNew, "0000000000000001 0000000d 01 0000000000000250 0000000000000002 0000000000000020 0000000000000002",
		Args{uint64(1), Mechanism{Type: ck.RSAPKCSPSS, Has: true, Nums: []uint64{0x250, 2, 32}}, uint64(2)}},
	{"pss, new, no parameter", SignInit, FormNew, "0000000000000001 0000000d 00 0000000000000002",
		Args{uint64(1), Mechanism{Type: ck.RSAPKCSPSS}, uint64(2)}},
	{"cancel", SignInit, FormNew, "0000000000000001 ffffffff 0000000000000000", Args{uint64(1), Mechanism{Type: ck.NoMechanism}, uint64(0)}},
	{"gcm, old", EncryptInit, FormOld,
		"0000000000000001 00001087 0000000c 000000000000000000000000 0000000000000060 00000003 010203 0000000000000080 0000000000000005",
		Args{uint64(1), gcm, uint64(5)}},
	{"gcm, new", EncryptInit, FormNew,
		"0000000000000001 00001087 01 0000000c 000000000000000000000000 0000000000000060 00000003 010203 0000000000000080 0000000000000005",
		Args{uint64(1), gcm, uint64(5)}},
	{"gcm, module", EncryptInit, FormModule,
		"0000000000000001 00001087 01 0000000c 000000000000000000000000 0000000000000060 00000003 010203 0000000000000080 0000000000000005",
		Args{uint64(1), gcm, uint64(5)}},
	{"ctr", EncryptInit, FormNew, "0000000000000001 00001086 01 0000000000000080 00000010 00000000000000000000000000000000 0000000000000005",
		Args{uint64(1), Mechanism{Type: ck.AESCTR, Has: true, Nums: []uint64{128}, Bufs: [][]byte{make([]byte, 16)}}, uint64(5)}},
	{"oaep", EncryptInit, FormOld, "0000000000000001 00000009 0000000000000220 0000000000000001 0000000000000001 ffffffff 0000000000000005",
		Args{uint64(1), Mechanism{Type: ck.RSAPKCSOAEP, Has: true, Nums: []uint64{0x220, 1, 1}, Bufs: [][]byte{nil}}, uint64(5)}},
	{"eddsa, module, no parameter", SignInit, FormModule, "0000000000000001 00001057 00 0000000000000002",
		Args{uint64(1), Mechanism{Type: ck.EDDSA}, uint64(2)}},
	{"unknown to the module", SignInit, FormModule, "0000000000000001 80000001 02 00000003 010203 0000000000000002",
		Args{uint64(1), Mechanism{Type: 0x80000001, Has: true, Raw: []byte{1, 2, 3}}, uint64(2)}},
	{"kdf, module", DeriveKey, FormModule, "0000000000000001 000003ac 01 0000000000000251 0000000000000001 0000000000000004 00000002 6162 0000000000000002 00000000",
		Args{uint64(1), Mechanism{Type: ck.SP800108Counter, Has: true, Nums: []uint64{0x251, 1, 4}, Bufs: [][]byte{[]byte("ab")}}, uint64(2), []Attribute{}}},
	{"generate aes", GenerateKey, FormNew,
		"0000000000000001 00001080 00000003 00000001 01 00000001 00 00000162 01 00000001 01 00000161 01 00000008 0000000000000020",
		Args{uint64(1), Mechanism{Type: ck.AESKeyGen}, []Attribute{
			{Type: ck.Token, Valid: true, Length: 1}, {Type: ck.Extractable, Valid: true, Length: 1, Num: 1}, {Type: ck.ValueLen, Valid: true, Length: 8, Num: 32}}}},
	{"templates in a template", CreateObject, FormNew,
		"0000000000000001 00000003 40000211 01 00000018 00000001 00000003 01 00000002 00000002 6869 40000600 01 00000008 00000001 0000000000000001 00000110 01 00000000 00000000",
		Args{uint64(1), []Attribute{
			{Type: ck.WrapTemplate, Valid: true, Length: 24, Attrs: []Attribute{{Type: ck.Label, Valid: true, Length: 2, Bytes: []byte("hi")}}},
			{Type: ck.AllowedMechanisms, Valid: true, Length: 8, Mechs: []ck.Mech{ck.RSAPKCS}},
			{Type: ck.StartDate, Valid: true, Bytes: []byte{}}}}},
	{"sign into 1024", Sign, FormOld, "0000000000000001 01 00000003 010203 00000400", Args{uint64(1), []byte{1, 2, 3}, Room{N: 1024}}},
	{"sign into a buffer of size 0", Sign, FormNew, "0000000000000001 01 ffffffff ffffffff", Args{uint64(1), []byte(nil), Room{}}},
}

var gcm = Mechanism{Type: ck.AESGCM, Has: true, Nums: []uint64{96, 128}, Bufs: [][]byte{make([]byte, 12), {1, 2, 3}}}

var ignoreSizeOnly = cmp.AllowUnexported(Attribute{})

func TestRequestsOfRealClientsAreRead(t *testing.T) {
	for _, v := range requests {
		t.Run(v.name, func(t *testing.T) {
			got, err := decode(v.call, unhex(t, v.body), v.form)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(v.want, got, ignoreSizeOnly); d != "" {
				t.Error(d)
			}
			if got, err = decodeAny(v.call, unhex(t, v.body), v.form); err != nil || !cmp.Equal(v.want, got, ignoreSizeOnly) {
				t.Errorf("decodeAny: %v, %v", got, err)
			}
		})
	}
}

// Every beginning of a request is too short, and one more byte is too many.
func TestRequestsAreReadToTheLastByte(t *testing.T) {
	for _, v := range requests {
		b := unhex(t, v.body)
		if v.call == GetAttributeValue && strings.Contains(v.body, "40000211") {
			continue // without its end it is what another version sends
		}
		for i := range b {
			if args, err := decode(v.call, b[:i], v.form); err == nil {
				t.Errorf("%s: %d of %d bytes are taken as %v", v.name, i, len(b), args)
			}
		}
		if _, err := decode(v.call, append(b, 0), v.form); err == nil {
			t.Errorf("%s: a byte too many is taken", v.name)
		}
	}
}

func TestMechanismOfTheOtherFormIsTried(t *testing.T) {
	for _, v := range requests {
		if v.form == FormModule {
			continue
		}
		got, err := decodeAny(v.call, unhex(t, v.body), 1-v.form)
		if err != nil || !cmp.Equal(v.want, got, ignoreSizeOnly) {
			t.Errorf("%s: %v, %v", v.name, got, err)
		}
	}
}

func TestHostileRequestsAreRefused(t *testing.T) {
	nested := strings.Repeat("00000001 40000211 01 00000018", maxDepth+1)
	for name, v := range map[string]struct {
		call Call
		form Form
		body string
	}{
		"bytes of 4 GiB":                     {Login, FormOld, "0000000000000001 0000000000000001 01 fffffffe 31"},
		"4 billion attributes":               {FindObjectsInit, FormOld, "0000000000000002 ffffffff 00000000"},
		"templates without end":              {CreateObject, FormNew, "0000000000000001" + nested + "00000000"},
		"rooms without end":                  {GetAttributeValue, FormNew, "0000000000000001 0000000000000001" + strings.Repeat("00000001 40000211 00000018", maxDepth+1) + "00000000"},
		"4 billion mechanisms":               {CreateObject, FormNew, "0000000000000001 00000001 40000600 01 00000008 ffffffff 0000000000000001"},
		"a flag of 2":                        {Login, FormOld, "0000000000000001 0000000000000001 02 00000000"},
		"a date of 9 characters":             {CreateObject, FormNew, "0000000000000001 00000001 00000110 01 00000009 00000009 323032303031303130"},
		"a mechanism nobody passes":          {SignInit, FormNew, "0000000000000001 00001057 00 0000000000000002"},
		"a kind of parameter there is not":   {SignInit, FormModule, "0000000000000001 00001057 03 0000000000000002"},
		"fields of a mechanism without some": {SignInit, FormModule, "0000000000000001 00001041 01 0000000000000002"},
		"a kdf of many items":                {DeriveKey, FormModule, "0000000000000001 000003ac 01 0000000000000251 ffffffffffffffff 0000000000000004"},
	} {
		t.Run(name, func(t *testing.T) {
			if args, err := decodeAny(v.call, unhex(t, v.body), v.form); err == nil {
				t.Errorf("taken as %v", args)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	for _, v := range []struct {
		name   string
		call   Call
		values []any
		want   string
	}{
		{"finalize", Finalize, nil, "00000012 00000000 00000008 | 00000002 00000000"},
		{"slots", GetSlotList, []any{[]uint64{0, 1}}, "00000012 00000000 0000001f | 00000004 00000002 6175 | 01 00000002 0000000000000000 0000000000000001"},
		{"no slots", GetSlotList, []any{[]uint64{}}, "00000012 00000000 0000000f | 00000004 00000002 6175 | 01 00000000"},
		{"number of slots", GetSlotList, []any{Size(2)}, "00000012 00000000 0000000f | 00000004 00000002 6175 | 00 00000002"},
		{"signature", Sign, []any{[]byte{1, 2}}, "00000012 00000000 00000011 | 0000002b 00000002 6179 | 01 00000002 0102"},
		{"length of a signature", Sign, []any{Size(256)}, "00000012 00000000 0000000f | 0000002b 00000002 6179 | 00 00000100"},
		{"attributes", GetAttributeValue, []any{[]Attribute{
			{Type: ck.Class, Valid: true, Length: 8, Num: 3}, {Type: ck.Token, Valid: true, Length: 1, Num: 1}, {Type: ck.Value},
			{Type: ck.ID, Valid: true, Length: 1, Bytes: []byte{7}}}, uint64(ck.AttributeSensitive)},
			"00000012 00000000 00000045 | 00000018 00000003 614175 | 00000004 00000000 01 00000008 0000000000000003 00000001 01 00000001 01 00000011 00" +
				"00000102 01 00000001 00000001 07 | 0000000000000011"},
	} {
		if got := hex.EncodeToString(encode(0x12, v.call, v.values)); got != hex.EncodeToString(unhex(t, v.want)) {
			t.Errorf("%s:\n got %s\nwant %s", v.name, got, hex.EncodeToString(unhex(t, v.want)))
		}
	}
	want := unhex(t, "00000012 00000000 00000011 | 00000000 00000001 75 | 00000000000000b3")
	if got := encodeError(0x12, ck.SessionHandleInvalid); string(got) != string(want) {
		t.Errorf("error: %x", got)
	}
	if got := encodeError(0x12, ck.OK); string(got[len(got)-8:]) == string(make([]byte, 8)) {
		t.Error("an error that is CKR_OK, which clients take for a mistake of the protocol")
	}
}

func TestAnswerKeepsToTheRoom(t *testing.T) {
	label := Attribute{Type: ck.Label, Valid: true, Bytes: []byte("secret")}
	if a, small := label.Answer(AttributeRoom{Type: ck.Label}); small || a.Length != 6 || a.Bytes != nil || !a.Valid {
		t.Errorf("size query: %+v %t", a, small)
	}
	if a, small := label.Answer(AttributeRoom{Type: ck.Label, Room: 5}); !small || a.Valid || a.Bytes != nil {
		t.Errorf("too small: %+v %t", a, small)
	}
	if a, small := label.Answer(AttributeRoom{Type: ck.Label, Room: 6}); small || string(a.Bytes) != "secret" || a.Length != 6 {
		t.Errorf("enough: %+v %t", a, small)
	}
	template := Attribute{Type: ck.WrapTemplate, Valid: true, Attrs: []Attribute{label}}
	if a, small := template.Answer(AttributeRoom{Type: ck.WrapTemplate}); small || a.Length != 24 {
		t.Errorf("size of a template: %+v %t", a, small)
	}
	if a, small := template.Answer(AttributeRoom{Type: ck.WrapTemplate, Room: 24, Nested: []AttributeRoom{{Type: ck.Label, Room: 3}}}); !small || a.Attrs[0].Valid {
		t.Errorf("element too small: %+v %t", a, small)
	}
}

// TestTableOfCalls: what the table says can be read and written.
func TestTableOfCalls(t *testing.T) {
	known := map[string]bool{"y": true, "u": true, "v": true, "s": true, "z": true, "ay": true, "fy": true, "au": true, "fu": true, "aA": true, "fA": true, "M": true}
	for c, s := range signatures {
		for _, l := range append(letters(s.Request), letters(s.Response)...) {
			if !known[l] {
				t.Errorf("%s (%d): no letter %q", s.Name, c, l)
			}
		}
	}
	if len(signatures) != 69+2 { // calls 1 to 67, 88, and 256 to 258
		t.Errorf("%d calls", len(signatures))
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range requests {
		f.Add(uint32(v.call), byte(v.form), unhex(f, v.body))
	}
	f.Fuzz(func(t *testing.T, call uint32, form byte, body []byte) {
		if _, ok := SignatureOf(Call(call)); !ok {
			return
		}
		args, err := decodeAny(Call(call), body, Form(form%3))
		if err == nil && len(args) != len(requestLetters[Call(call)]) {
			t.Errorf("%d values", len(args))
		}
	})
}
