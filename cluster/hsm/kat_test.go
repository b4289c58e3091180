package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// The worked example of FORMAT.md, computed here from the specification alone:
// HKDF from HMAC, the CBOR written out as hexadecimal.

func hmac256(key []byte, parts ...string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(strings.Join(parts, "")))
	return m.Sum(nil)
}

// hkdf32 is RFC 5869 for up to 32 bytes of output: one block.
func hkdf32(ikm, salt []byte, info string) []byte {
	if len(salt) == 0 {
		salt = make([]byte, 32)
	}
	return hmac256(hmac256(salt, string(ikm)), info, "\x01")
}

func be64(n int) string { return string([]byte{0, 0, 0, 0, 0, 0, byte(n >> 8), byte(n)}) }

// exampleCore is field 8 of the example: secret-key, aes, 32 bytes, generate,
// created, alice, check value, sensitive, extractable.
const exampleCore = "a9" + "01" + "6a7365637265742d6b6579" + "02" + "63616573" + "03" + "1820" + "05" + "6867656e6572617465" +
	"06" + "82" + "1b019ab3c4d5e60001" + "1b1122334455667789" + "07" + "65616c696365" + "09" + "43aabbcc" + "0b" + "f5" + "0c" + "f5"

// exampleRegisters is field 9: attr/sign and share/bob (nine characters, in
// bytewise order), then attr/label (ten).
const exampleRegisters = "a3" +
	"69617474722f7369676e" + "83" + "1b019ab3c4d5e60002" + "1b1122334455667789" + "4101" +
	"6973686172652f626f62" + "83" + "1b019ab3c4d5e60003" + "1b1122334455667789" + "4101" +
	"6a617474722f6c6162656c" + "83" + "1b019ab3c4d5e60002" + "1b1122334455667789" + "487061796d656e7473"

func TestKnownAnswer(t *testing.T) {
	secret, masking, material := sequence(0, 32), sequence(0x20, 32), sequence(0xc0, 32)
	mac := hkdf32(secret, nil, "hsmbackup v1 mask mac")
	public := ed25519.NewKeyFromSeed(hkdf32(secret, nil, "hsmbackup v1 signing"))[32:]
	fingerprint := sha256.Sum256(public)
	lineage := fingerprint[:16]

	core := unhex(t, exampleCore)
	birth := hmac256(mac, "hsmbackup birth v1\x00",
		be64(1), "\x01", be64(8), string(unhex(t, "0123456789abcdef")), be64(len(core)), string(core), be64(32), string(material))[:16]
	clearPart := unhex(t, "a6"+"0101"+"021b0123456789abcdef"+"0350"+hex.EncodeToString(lineage)+"0550"+hex.EncodeToString(birth)+"08"+exampleCore+"09"+exampleRegisters)
	hidden := append(unhex(t, "a1"+"01"+"5820"), material...)
	siv := hmac256(mac, "hsmbackup masked object v1\x00", be64(len(clearPart)), string(clearPart), be64(len(hidden)), string(hidden))
	key := hkdf32(masking, siv, "hsmbackup v1 seal")
	aead := result(cipher.NewGCM(result(aes.NewCipher(key))(t)))(t)
	sealed := aead.Seal(nil, make([]byte, 12), hidden, clearPart)
	want := unhex(t, "85"+"01"+"01"+"5820"+hex.EncodeToString(siv)+"58dc"+hex.EncodeToString(clearPart)+"5834"+hex.EncodeToString(sealed))

	k := testKeyring(t, 1)
	m := mask(t, k, aesRecord(t, k))
	if !bytes.Equal(m.Bytes, want) {
		t.Errorf("masked\n %x, want\n %x", m.Bytes, want)
	}
	if m.Lineage != Lineage(lineage) || m.Digest != Digest(siv[:16]) {
		t.Errorf("lineage %s, digest %s", m.Lineage, m.Digest)
	}
	checkExample(t, map[string][]byte{
		"mac": mac, "lineage": lineage, "core": core, "birth": birth, "clear part": clearPart, "sealed part": hidden, "siv": siv, "seal key": key,
		"ciphertext": sealed, "masked object": want,
	})
	checkDerived(t, k, secret)
}

// checkExample compares the worked example of FORMAT.md: "NAME = hex", where
// blanks and line ends in the hex do not count.
func checkExample(t *testing.T, want map[string][]byte) {
	t.Helper()
	text := string(result(os.ReadFile("FORMAT.md"))(t))
	for name, b := range want {
		_, rest, ok := strings.Cut(text, "\n"+name+" =")
		end := strings.IndexAny(rest, "=`") // the next value, or the end of the block
		if !ok || end < 0 || !strings.HasPrefix(strings.Join(strings.Fields(rest[:end]), ""), hex.EncodeToString(b)) {
			t.Errorf("FORMAT.md does not show %s = %x", name, b)
		}
	}
}

// checkDerived: everything else that is derived from the lineage secret.
func checkDerived(t *testing.T, k *Keyring, secret []byte) {
	t.Helper()
	prints, cluster := k.FingerprintKeys(), ClusterID(0x8877665544332211)
	if !bytes.Equal(prints.Root[:], hkdf32(secret, nil, "hsmbackup v1 root")) || !bytes.Equal(prints.Sketch[:], hkdf32(secret, nil, "hsmbackup v1 sketch")[:16]) {
		t.Error("fingerprint keys are derived in another way than written")
	}
	if !k.TicketKey(cluster).Equal(NewSecret(hkdf32(secret, nil, "hsmbackup v1 ticket "+cluster.String()))) || k.TicketKey(1).Equal(k.TicketKey(2)) {
		t.Error("ticket keys are derived in another way than written")
	}
}

// RFC 8032 §7.1, test 2: the primitive under LineageSignature.
func TestEd25519Vector(t *testing.T) {
	seed := unhex(t, "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
	public := unhex(t, "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
	want := unhex(t, "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00")
	key := ed25519.NewKeyFromSeed(seed)
	if !bytes.Equal(key[32:], public) || !bytes.Equal(ed25519.Sign(key, []byte{0x72}), want) || !ed25519.Verify(public, []byte{0x72}, want) {
		t.Error("Ed25519 differs from RFC 8032")
	}
}

// RFC 5869, test case 1: the HKDF that the known answers stand on.
func TestHKDFVector(t *testing.T) {
	got := hkdf32(bytes.Repeat([]byte{0x0b}, 22), unhex(t, "000102030405060708090a0b0c"), string(unhex(t, "f0f1f2f3f4f5f6f7f8f9")))
	if hex.EncodeToString(got) != "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf" {
		t.Errorf("%x", got)
	}
}
