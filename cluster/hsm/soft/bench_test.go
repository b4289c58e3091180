package soft

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func benchHSM(b *testing.B) (*HSM, *session) {
	o := testOptions(nil)
	o.Dir = b.TempDir()
	h := withUser(b, open(b, o))
	return h, login(b, h, "alice")
}

// parallel runs f b.N times in n goroutines.
func parallel(b *testing.B, n int, f func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan error, n)
	b.ResetTimer()
	for range n {
		go func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range n {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkCreate: an AES key made durable and visible takes two synced
// commits, prepare and commit; beside it, the raw store doing as many of the
// same size.
func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("hsm/%d", writers), func(b *testing.B) {
			_, s := benchHSM(b)
			parallel(b, writers, func() error {
				op := randomOp()
				if _, err := s.Create(b.Context(), op, aesRequest); err != nil {
					return err
				}
				return s.Commit(b.Context(), op)
			})
		})
		b.Run(fmt.Sprintf("raw/%d", writers), func(b *testing.B) {
			h, s := benchHSM(b)
			m := must[hsm.Created](b)(s.Create(b.Context(), randomOp(), aesRequest)).Objects[0]
			parallel(b, writers, func() error {
				op := randomOp()
				if err := h.store.db.Set(opKey(prefixMark, op), m.Bytes, pebble.Sync); err != nil {
					return err
				}
				return h.store.db.Set(objectKey(0, hsm.NewKeyRef()), m.Bytes, pebble.Sync)
			})
		})
	}
}

// BenchmarkChange: one synced commit.
func BenchmarkChange(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			_, s := benchHSM(b)
			var keys []hsm.KeyRef
			for range 256 {
				keys = append(keys, createKey(b, s).Ref)
			}
			var n atomic.Uint64
			parallel(b, writers, func() error {
				i := n.Add(1)
				_, err := s.Change(b.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: keys[i%256], Name: "label", Value: fmt.Sprint(i)})
				return err
			})
		})
	}
}

// BenchmarkInsert loads 100,000 objects into an empty HSM: each is opened,
// authenticated, indexed, sketched and durable.
func BenchmarkInsert(b *testing.B) {
	o := testOptions(nil)
	objects := make([]hsm.MaskedObject, 100_000)
	for i := range objects {
		objects[i] = handmade(b, o.Keyring, "alice", time.Now())
	}
	for b.Loop() {
		b.StopTimer()
		o.Dir = b.TempDir()
		h := open(b, o)
		s := peer(b, h)
		b.StartTimer()
		got, err := s.Insert(b.Context(), each(objects))
		if err != nil || got.Added != len(objects) {
			b.Fatal(got.Added, err)
		}
		b.StopTimer()
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N*len(objects))/b.Elapsed().Seconds(), "objects/s")
}

// BenchmarkOpen opens an HSM with 100,000 objects, which rebuilds the sketch.
func BenchmarkOpen(b *testing.B) {
	o := testOptions(nil)
	o.Dir = b.TempDir()
	objects := make([]hsm.MaskedObject, 100_000)
	for i := range objects {
		objects[i] = handmade(b, o.Keyring, "alice", time.Now())
	}
	h := open(b, o)
	if _, err := peer(b, h).Insert(b.Context(), each(objects)); err != nil {
		b.Fatal(err)
	}
	if err := h.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		h := must[*HSM](b)(Open(o))
		b.StopTimer()
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func benchUse(b *testing.B, s *session, u hsm.Use) {
	for b.Loop() {
		if _, err := s.Use(b.Context(), u); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUse: what a use of a key costs beside the cryptography itself.
func BenchmarkUse(b *testing.B) {
	_, s := benchHSM(b)
	data, digest := make([]byte, 1024), sha256.Sum256([]byte("message"))
	create := func(r hsm.CreateRequest) hsm.KeyRef {
		op := randomOp()
		made := must[hsm.Created](b)(s.Create(b.Context(), op, r))
		if err := s.Commit(b.Context(), op); err != nil {
			b.Fatal(err)
		}
		return made.Keys[0].Ref
	}
	sign, encrypt := map[string]string{"sign": "true"}, map[string]string{"encrypt": "true"}
	ec := create(hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ec", Curve: "secp256r1", Attributes: sign})
	rsaRef := create(hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "rsa", Size: 2048, Attributes: sign})
	aesRef := create(hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: encrypt})

	b.Run("p256/hsm", func(b *testing.B) {
		benchUse(b, s, hsm.Use{Kind: hsm.UseSign, Key: ec, Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256", Digest: true}, Data: digest[:]})
	})
	b.Run("p256/raw", func(b *testing.B) {
		k := must[*ecdsa.PrivateKey](b)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		for b.Loop() {
			if _, err := ecdsa.SignASN1(rand.Reader, k, digest[:]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rsa2048/hsm", func(b *testing.B) {
		benchUse(b, s, hsm.Use{Kind: hsm.UseSign, Key: rsaRef, Params: hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256", Digest: true}, Data: digest[:]})
	})
	b.Run("rsa2048/raw", func(b *testing.B) {
		k := must[*rsa.PrivateKey](b)(rsa.GenerateKey(rand.Reader, 2048))
		for b.Loop() {
			if _, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("gcm1k/hsm", func(b *testing.B) {
		benchUse(b, s, hsm.Use{Kind: hsm.UseEncrypt, Key: aesRef, Params: hsm.Params{Mechanism: "aes-gcm"}, Data: data})
	})
	b.Run("gcm1k/raw", func(b *testing.B) {
		block := must[cipher.Block](b)(aes.NewCipher(make([]byte, 32)))
		aead := must[cipher.AEAD](b)(cipher.NewGCMWithRandomNonce(block))
		for b.Loop() {
			aead.Seal(nil, nil, data, nil)
		}
	})
}

// BenchmarkSessionKey: what making a session key costs; it is destroyed again.
func BenchmarkSessionKey(b *testing.B) {
	_, s := benchHSM(b)
	for name, r := range map[string]hsm.CreateRequest{
		"aes": {Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: map[string]string{"encrypt": "true", "sign": "false", "verify": "false"}},
		"p256": {
			Method: hsm.MethodGenerate, Type: "ec", Curve: "secp256r1",
			Attributes: map[string]string{"sign": "true"}, Public: map[string]string{"verify": "true", "label": "", "id": ""},
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, k := range must[hsm.Created](b)(s.Create(b.Context(), randomOp(), r)).Keys {
					s.forget(k.Ref)
				}
			}
		})
	}
}
