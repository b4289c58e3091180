//go:build linux

package module

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorded runs the program's mode of known calls, and returns what arrived.
func recorded(t *testing.T, version byte, strict bool) []string {
	t.Helper()
	var mu sync.Mutex
	var got []string
	f := fake{version: version, strict: strict, answer: func(r request) ([]byte, bool) {
		if r.id == 1 || r.id == 2 {
			return frame(r.code, r.id, "", nil), true
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.String())
		return refusal(r.code), true
	}}
	run(t, build(t, sanitizers), f.listen(t), "encodings")
	mu.Lock()
	defer mu.Unlock()
	return got
}

// signInit is a C_SignInit of session 1 and key 2 with this mechanism.
func signInit(mechanism string) string {
	return "42 0000000000000001" + strings.ReplaceAll(mechanism, " ", "") + "0000000000000002"
}

func mechanisms(list ...string) []string {
	var out []string
	for _, m := range list {
		out = append(out, signInit(m))
	}
	return out
}

const zeros12, zeros16 = "000000000000000000000000", "00000000000000000000000000000000"

// ownMechanisms are the calls of the mode in the form of PROTOCOL.md.
var ownMechanisms = mechanisms(
	"00000040 00", // SHA256_RSA_PKCS
	"0000000d 01 0000000000000250 0000000000000002 0000000000000020",
	"00001057 00", // EDDSA
	"00001057 01 0000000000000001 00000004 74657874",
	"0000001d 01 0000000000000001 00000004 74657874", // ML_DSA
	"00000252 01 000000000000000c",                   // SHA256_HMAC_GENERAL
	"80001234 02 00000004 74657874",                  // not in the table
	"80001234 00",
	"ffffffff", // cancel
	"00001087 01 0000000c"+zeros12+"0000000000000060 00000003 010203 0000000000000080",
	"00001087 01 0000000c"+zeros12+"0000000000000060 00000003 010203 0000000000000080", // the older structure
	"00001086 01 0000000000000080 00000010"+zeros16,
	"00001082 01 00000010"+zeros16,
	"00000009 01 0000000000000220 0000000000000001 0000000000000001 ffffffff",
	"00001054 01 0000000000000100 0000000000000220 0000000000000001 0000000000000001 ffffffff",
	"00001088 01 0000000000000040 00000007 00000000000000 00000003 010203 0000000000000008",
	"00002109 00",
	"00002109 01 00000008 0000000000000000",
	"00001050 01 0000000000000001 ffffffff 00000004 04050607",
	"0000402a 01 0000000000000001 0000000000000000 0000000000000250 0000000000000002 00000002 0000 0000000000000005 00000004 74657874",
	"000003ac 01 0000000000000251 0000000000000003"+
		"0000000000000001 00000010 0000000000000000 0000000000000020"+
		"0000000000000004 00000004 74657874"+
		"0000000000000003 00000018 0000000000000001 0000000000000001 0000000000000010",
	"00000360 01 0000000000000009",
)

// third are those that a server of p11-kit from 0.25.6 on has words for.
var thirdMechanisms = mechanisms(
	"00000040",
	"0000000d 01 0000000000000250 0000000000000002 0000000000000020",
	"00000252 01 000000000000000c",
	"ffffffff",
	"00001087 01 0000000c"+zeros12+"0000000000000060 00000003 010203 0000000000000080",
	"00001087 01 0000000c"+zeros12+"0000000000000060 00000003 010203 0000000000000080",
	"00001086 01 0000000000000080 00000010"+zeros16,
	"00001082 01 00000010"+zeros16,
	"00000009 01 0000000000000220 0000000000000001 0000000000000001 ffffffff",
	"00001050 01 0000000000000001 ffffffff 00000004 04050607",
)

// secondMechanisms are the same in the form before.
var secondMechanisms = mechanisms(
	"00000040 ffffffff",
	"0000000d 0000000000000250 0000000000000002 0000000000000020",
	"00000252 000000000000000c",
	"ffffffff",
	"00001087 0000000c"+zeros12+"0000000000000060 00000003 010203 0000000000000080",
	"00001087 0000000c"+zeros12+"0000000000000060 00000003 010203 0000000000000080",
	"00001086 0000000000000080 00000010"+zeros16,
	"00001082 00000010"+zeros16,
	"00000009 0000000000000220 0000000000000001 0000000000000001 ffffffff",
	"00001050 0000000000000001 ffffffff 00000004 04050607",
)

var firstMechanisms = mechanisms(
	"00000040 ffffffff",
	"0000000d 0000000000000250 0000000000000002 0000000000000020",
	"ffffffff",
	"00000009 0000000000000220 0000000000000001 0000000000000001 ffffffff",
)

// template is the C_FindObjectsInit of the mode, then one that is empty.
var template = []string{
	"26 0000000000000001 00000008" +
		"00000000 01 00000008 0000000000000004" +
		"00000100 01 00000008 000000000000001f" +
		"00000001 01 00000001 01" +
		"00000003 01 00000004 00000004 74657874" +
		"00000102 01 00000000 ffffffff" +
		"40000211 01 00000030 00000002 00000162 01 00000001 00 00000000 01 00000008 0000000000000004" +
		"40000600 01 00000010 00000002 0000000000001087 0000000000001082" +
		"00000011 00",
	"26 0000000000000001 00000000",
}

const rooms = "24 0000000000000001 0000000000000002 00000003" +
	"00000000 00000008 00000003 00000000 40000211 00000030 00000002 00000162 00000001 00000000 00000008"

// buffers are the calls with bytes and room for bytes. The room at a place of size 0
// is what differs: an old server knows no such thing.
func buffers(none, initToken string) []string {
	return []string{
		"18 0000000000000001 0000000000000001 01 00000009 757365723a776f7264",
		"18 0000000000000001 0000000000000001 00 00000000",
		"43 0000000000000001 01 00000004 74657874 00000010",
		"43 0000000000000001 01 00000000 00000000",
		"45 0000000000000001 " + none,
		"4 00 00000000",
		"10 0000000000000007 0000000000000006",
		initToken + " 0000000000000007 01 00000004 74657874 00000020 61206c6162656c206f6620746869727479 2d74776f2063686172616374657273",
	}
}

func plain(parts ...[]string) []string {
	var out []string
	for _, part := range parts {
		for _, line := range part {
			id, values, _ := strings.Cut(line, " ")
			out = append(out, id+" "+strings.ReplaceAll(values, " ", ""))
		}
	}
	return out
}

// ivOf are the calls to seal with AES-GCM under an IV of zeros: the HSM is asked for an
// IV, and refuses here. If the caller's IVs are as they are, the calls are what they are.
func ivOf(who string) []string {
	const sealing = "00001087 01 0000000c" + zeros12 + "0000000000000060 00000003 010203 0000000000000080"
	if who == "caller" {
		return []string{"29 0000000000000001" + sealing + "0000000000000002", "60 0000000000000001" + sealing + "0000000000000002 0000000000000003 00000000"}
	}
	return []string{"64 0000000000000001 0000000c", "64 0000000000000001 0000000c"}
}

// sealed puts the calls of ivOf after the last call with a mechanism.
func sealed(mechanisms, iv []string, last string) (out []string) {
	for i, m := range mechanisms {
		out = append(out, m)
		if strings.HasPrefix(m, signInit(last)[:27]) && (i+1 == len(mechanisms) || !strings.HasPrefix(mechanisms[i+1], signInit(last)[:27])) {
			out = append(out, iv...)
		}
	}
	return out
}

func TestEncodings(t *testing.T) {
	for _, c := range []struct {
		name    string
		version byte
		strict  bool
		iv      string
		want    []string
	}{
		{"own", 0x48, false, "", plain(sealed(ownMechanisms, ivOf("hsm"), "00002109"), template, []string{rooms}, buffers("ffffffff", "88"))},
		{"own, IV of the caller", 0x48, false, "caller", plain(sealed(ownMechanisms, ivOf("caller"), "00002109"), template, []string{rooms}, buffers("ffffffff", "88"))},
		{"0.26", 2, false, "hsm", plain(sealed(thirdMechanisms, ivOf("hsm"), "00000009"), template, []string{rooms}, buffers("ffffffff", "88"))},
		{"0.25", 1, false, "", plain(sealed(secondMechanisms, ivOf("hsm"), "00000009"), template, buffers("ffffffff", "88"))},
		{"0.24", 0, true, "", plain(sealed(firstMechanisms, ivOf("hsm"), "00000009"), template, buffers("00000000", "9"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.iv != "" {
				t.Setenv("HSMBACKUP_PKCS11_GCM_IV", c.iv)
			}
			if diff := cmp.Diff(c.want, recorded(t, c.version, c.strict)); diff != "" {
				t.Errorf("what arrived (want -, got +):\n%s", diff)
			}
		})
	}
}
