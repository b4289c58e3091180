package rpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// callers runs f b.N times from n goroutines.
func callers(b *testing.B, n int, f func() error) {
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for next.Add(1) <= int64(b.N) {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkRoundTrip is the cost of the wire alone: a call that does nothing.
func BenchmarkRoundTrip(b *testing.B) {
	m := &probeModule{info: func(context.Context) (hsm.Info, error) { return hsm.Info{ID: 7}, nil }}
	_, remote := newProbe(b, m)
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprintf("callers=%d", n), func(b *testing.B) {
			callers(b, n, func() error { _, err := remote.Info(b.Context()); return err })
		})
	}
}

// BenchmarkCall is the cost of the wire alone, for what a session asks for all the
// time.
func BenchmarkCall(b *testing.B) {
	_, r := newProbe(b, &probeModule{})
	remote := framed(b, r)
	for _, n := range []int{1, 4, 32} {
		b.Run(fmt.Sprintf("callers=%d", n), func(b *testing.B) {
			callers(b, n, func() error {
				_, err := remote.Use(b.Context(), hsm.Use{Kind: hsm.UseSign, Key: 1, Params: hsm.Params{Mechanism: "hmac", Hash: "sha256"}})
				return err
			})
		})
	}
}

// BenchmarkSignP256 signs on the HSM itself and over the wire.
func BenchmarkSignP256(b *testing.B) {
	s := newSite(b)
	s.users("bob")
	digest := sha256.Sum256([]byte("message"))
	for name, m := range map[string]hsm.Module{"local": s.hsm.Module(hsm.Principal{}), "rpc": s.dial(pki.KindClient, "app")} {
		bob := loginAs(b, m, hsm.RoleCryptoUser, "bob")
		key := create(b, bob, hsm.CreateRequest{
			Method: hsm.MethodGenerate, Type: "ec", Curve: "secp256r1", Token: true,
			Attributes: map[string]string{"label": "k", "sign": "true"}, Public: map[string]string{"label": "k", "verify": "true"},
		}).Keys[0].Ref
		use := hsm.Use{Kind: hsm.UseSign, Key: key, Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256", Digest: true}, Data: digest[:]}
		for _, n := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/callers=%d", name, n), func(b *testing.B) {
				callers(b, n, func() error { _, err := bob.Use(b.Context(), use); return err })
			})
		}
	}
}

// BenchmarkCells is the rate at which cells cross the wire.
func BenchmarkCells(b *testing.B) {
	_, remote := newProbe(b, &probeModule{})
	b.ReportAllocs()
	n := 0
	for _, err := range remote.Cells(b.Context(), 0) {
		if err != nil {
			b.Fatal(err)
		}
		if n++; n >= b.N {
			break
		}
	}
	b.SetBytes(35)
}

// BenchmarkExtract copies masked objects off an HSM.
func BenchmarkExtract(b *testing.B) {
	s := newSite(b)
	remote := open(b, s.dial(pki.KindHSM, hsm.NewHSMID().String()))
	made := masked(b, s.keyring, 10_000)
	if _, err := remote.Insert(b.Context(), objects(made...)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(made[0].Bytes)))
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		got := remote.Extract(b.Context(), func(yield func(hsm.KeyRef) bool) {
			for _, m := range made[:min(len(made), b.N-n)] {
				if !yield(m.Ref) {
					return
				}
			}
		})
		for _, err := range got {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
}

// BenchmarkSessionKey makes session keys on the HSM itself and over the wire.
func BenchmarkSessionKey(b *testing.B) {
	s := newSite(b)
	s.users("bob")
	for name, m := range map[string]hsm.Module{"local": s.hsm.Module(hsm.Principal{}), "rpc": s.dial(pki.KindClient, "app")} {
		for what, r := range map[string]hsm.CreateRequest{
			"aes":  {Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: map[string]string{"encrypt": "true"}},
			"p256": {Method: hsm.MethodGenerate, Type: "ec", Curve: "secp256r1", Attributes: map[string]string{"sign": "true"}},
		} {
			b.Run(name+"/"+what, func(b *testing.B) {
				bob := loginAs(b, m, hsm.RoleCryptoUser, "bob")
				callers(b, 1, func() error {
					_, err := bob.Create(b.Context(), newOp(), r)
					return err
				})
			})
		}
	}
}
