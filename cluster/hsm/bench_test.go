package hsm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"testing"
)

// The physical limit of Mask and Unmask is the cryptography alone: one HMAC,
// one HKDF and one GCM over the same bytes.
func BenchmarkCryptoLimit(b *testing.B) {
	k := testKeyring(b, 1)
	r := ecRecord(b, k)
	clearBytes, hidden := k.encodeClear(r), encodeHidden(r)
	key, masking := k.mac.Reveal(), sequence(0x20, 32)
	out := make([]byte, 0, len(hidden)+16)
	b.SetBytes(int64(len(mask(b, k, r).Bytes)))
	b.ReportAllocs()
	for b.Loop() {
		m := hmac.New(sha256.New, key)
		m.Write(clearBytes)
		m.Write(hidden)
		seal, _ := hkdf.Key(sha256.New, masking, m.Sum(nil), "hsmbackup v1 seal", 32)
		block, _ := aes.NewCipher(seal)
		aead, _ := cipher.NewGCM(block)
		aead.Seal(out, nonce[:], hidden, clearBytes)
	}
}

func BenchmarkMask(b *testing.B) {
	k := testKeyring(b, 1)
	r := ecRecord(b, k)
	b.SetBytes(int64(len(mask(b, k, r).Bytes)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Mask(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnmask(b *testing.B) {
	k := testKeyring(b, 1)
	m := mask(b, k, ecRecord(b, k))
	b.SetBytes(int64(len(m.Bytes)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Unmask(m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseMasked(b *testing.B) {
	k := testKeyring(b, 1)
	m := mask(b, k, ecRecord(b, k))
	b.SetBytes(int64(len(m.Bytes)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := ParseMasked(m.Bytes); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSplitJoin(b *testing.B) {
	k := testKeyring(b, 1)
	m := mask(b, k, ecRecord(b, k))
	b.SetBytes(int64(len(m.Bytes)))
	b.ReportAllocs()
	for b.Loop() {
		c, err := SplitMasked(m.Bytes)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := JoinMasked(c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	k := testKeyring(b, 1)
	x, y := ecRecord(b, k), ecRecord(b, k)
	y.Set("attr/label", []byte("other"), at(99))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(x, y); err != nil {
			b.Fatal(err)
		}
	}
}
