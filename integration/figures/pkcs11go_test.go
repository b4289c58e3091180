//go:build linux

package figures

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	bigendian "encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// goOperations are the operations of modulebench with Go's cryptography and nothing
// between. Each call of an operation may have its own number.
func goOperations(tb testing.TB) map[string]func(n uint64) error {
	tb.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	secret, kilobyte, digest := make([]byte, 32), make([]byte, 1024), make([]byte, 32)
	block, err := aes.NewCipher(secret)
	if err != nil {
		tb.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		tb.Fatal(err)
	}
	return map[string]func(uint64) error{
		"round-trip": func(uint64) error { return nil },
		"rsa-2048-sign": func(uint64) error {
			_, err := rsa.SignPKCS1v15(nil, rsaKey, crypto.SHA256, digest)
			return err
		},
		"p256-sign": func(uint64) error {
			_, err := ecdsa.SignASN1(rand.Reader, ecKey, digest)
			return err
		},
		"aes-gcm-1k": func(n uint64) error {
			gcm.Seal(nil, bigendian.BigEndian.AppendUint64(make([]byte, 4), n), kilobyte, nil)
			return nil
		},
		"aes-ecb-1k": func(uint64) error {
			out := make([]byte, len(kilobyte))
			for i := 0; i < len(out); i += aes.BlockSize {
				block.Encrypt(out[i:], kilobyte[i:])
			}
			return nil
		},
		"hmac-sha256-1k": func(uint64) error {
			m := hmac.New(sha256.New, secret)
			m.Write(kilobyte)
			m.Sum(nil)
			return nil
		},
		"aes-make": func(uint64) error {
			_, err := rand.Read(make([]byte, 32))
			return err
		},
		"p256-make": func(uint64) error {
			_, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			return err
		},
	}
}

// goRates measures as modulebench does.
func goRates(tb testing.TB, threads int) rates {
	tb.Helper()
	out := rates{}
	for name, operation := range goOperations(tb) {
		out[name] = goRate(tb, threads, operation)
	}
	return out
}

func goRate(tb testing.TB, threads int, operation func(uint64) error) string {
	tb.Helper()
	const samples = 1 << 17
	length, err := time.ParseDuration(pkcs11Time + "ms")
	if err != nil {
		tb.Fatal(err)
	}
	var stop atomic.Bool
	var count, nonce atomic.Uint64
	took := make([][]time.Duration, threads)
	var all sync.WaitGroup
	start := time.Now()
	for i := range threads {
		all.Go(func() {
			for !stop.Load() {
				at := time.Now()
				if err := operation(nonce.Add(1)); err != nil {
					tb.Error(err)
					return
				}
				if count.Add(1); len(took[i]) < samples {
					took[i] = append(took[i], time.Since(at))
				}
			}
		})
	}
	time.Sleep(length)
	stop.Store(true)
	all.Wait()
	seconds := time.Since(start).Seconds()
	sorted := slices.Concat(took...)
	slices.Sort(sorted)
	return fmt.Sprintf("%.0f %d %d", float64(count.Load())/seconds, sorted[len(sorted)/2].Microseconds(), sorted[len(sorted)*99/100].Microseconds())
}
