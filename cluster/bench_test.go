package cluster

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// newDiskWorld is a cluster whose HSMs write to real disks and sync them, with
// nothing between them and the client.
func newDiskWorld(b *testing.B) (*world, *Cluster) {
	w := newWorld(b, 3, 2, true)
	for _, x := range w.boxes {
		x.kill()
		x.fs, x.dir = vfs.Default, b.TempDir()
		x.start()
	}
	w.fill(2, true)
	direct := func(_ context.Context, m hsm.Member) (hsm.Module, error) {
		h, _ := w.box(m.ID).running()
		return h.Module(hsm.Principal{Role: hsm.RoleNone, Name: "bench"}), nil
	}
	c, err := Open(context.Background(), w.profile(), asUser, WithDialer(direct))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return w, c
}

// callers runs f b.N times from n goroutines.
func callers(b *testing.B, n int, f func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

// BenchmarkCreateAES creates token keys on three HSMs on real disks, two copies.
// The limit beside it: one HSM making and committing the same keys, without a
// cluster.
func BenchmarkCreateAES(b *testing.B) {
	b.Run("cluster/callers=16", func(b *testing.B) {
		_, c := newDiskWorld(b)
		callers(b, 16, func() error {
			_, err := c.Create(context.Background(), aes(), Policy{})
			return err
		})
	})
	b.Run("one-HSM/callers=16", func(b *testing.B) {
		w, _ := newDiskWorld(b)
		s := w.boxes[0].as(hsm.RoleCryptoUser, userName)
		callers(b, 16, func() error {
			op := newOp()
			if _, err := s.Create(context.Background(), op, aes()); err != nil {
				return err
			}
			return s.Commit(context.Background(), op)
		})
	})
}

// BenchmarkSign signs through the client, beside the raw crypto of the standard
// library on all cores.
func BenchmarkSign(b *testing.B) {
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	kinds := []struct {
		name    string
		request hsm.CreateRequest
		params  hsm.Params
		raw     func() error
	}{
		{"P-256", ec(), hsm.Params{Mechanism: "ecdsa", Hash: "sha256", Digest: true}, func() error {
			_, err := ecdsa.SignASN1(rand.Reader, ecKey, digest[:])
			return err
		}},
		{"RSA-2048", rsa2048(), hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256", Digest: true}, func() error {
			_, err := rsaKey.Sign(rand.Reader, digest[:], crypto.SHA256)
			return err
		}},
	}
	_, c := newDiskWorld(b)
	for _, k := range kinds {
		ref := mustCreate(b, c, k.request)
		mustWait(b, c, ref)
		for _, n := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/cluster/callers=%d", k.name, n), func(b *testing.B) {
				callers(b, n, func() error {
					_, err := c.Use(context.Background(), hsm.Use{Kind: hsm.UseSign, Key: ref, Data: digest[:], Params: k.params})
					return err
				})
			})
		}
		for _, n := range []int{1, runtime.GOMAXPROCS(0)} {
			b.Run(fmt.Sprintf("%s/raw/callers=%d", k.name, n), func(b *testing.B) { callers(b, n, k.raw) })
		}
	}
}

func rsa2048() hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "rsa", Size: 2048,
		Attributes: map[string]string{"sign": "true"}, Public: map[string]string{"verify": "true"}}
}
