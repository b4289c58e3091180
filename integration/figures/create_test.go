package figures

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// parallel runs f b.N times with so many callers.
func parallel(b *testing.B, callers int, f func(i int) error) {
	b.Helper()
	next := make(chan int)
	var wg sync.WaitGroup
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range b.N {
		next <- i
	}
	close(next)
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkCreateAES makes AES token keys on three HSM processes with two
// copies. Beside it, in turn, etcd with three members puts a value of the size of
// such a key, which a majority of them has on disk; the limit is a bare append
// with fsync, what one durable step costs on this disk without any grouping.
func BenchmarkCreateAES(b *testing.B) {
	p, fleet := startFleet(b, spec(filepath.Join(b.TempDir(), "cluster")))
	c := alice(b, p)
	e := startEtcd(b)
	request := hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"label": "bench"}}
	size := sizeOfKey(b, c, request)
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			reportCPU(b, fleet.PIDs(), func() {
				parallel(b, callers, func(int) error {
					_, err := c.Create(b.Context(), request, cluster.Policy{})
					return err
				})
			})
		})
		b.Run(fmt.Sprintf("beside=etcd,callers=%d,bytes=%d", callers, size), func(b *testing.B) {
			reportCPU(b, e.pids, func() { e.put(b, callers, size) })
		})
	}
	b.Run("limit=fsync", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "log"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		record := make([]byte, 300)
		parallel(b, 1, func(int) error {
			if _, err := f.Write(record); err != nil {
				return err
			}
			return f.Sync()
		})
	})
}

// sizeOfKey makes a key and returns the size of its masked object.
func sizeOfKey(b *testing.B, c *cluster.Cluster, r hsm.CreateRequest) int {
	b.Helper()
	made, err := c.Create(b.Context(), r, cluster.Policy{})
	if err != nil {
		b.Fatal(err)
	}
	for m, err := range c.Extract(b.Context(), slices.Values([]hsm.KeyRef{made.Keys[0].Ref})) {
		if err != nil {
			b.Fatal(err)
		}
		return len(m.Bytes)
	}
	b.Fatal("a new key is not there")
	return 0
}

// BenchmarkSign signs through the cluster client; the limit is Go's own crypto
// on as many goroutines, in a process that does nothing else.
func BenchmarkSign(b *testing.B) {
	p := start(b, spec(filepath.Join(b.TempDir(), "cluster")))
	c := alice(b, p)
	digest := sha256.Sum256([]byte("figures"))
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	cases := []struct {
		name, mechanism string
		request         hsm.CreateRequest
		raw             func() error
	}{
		{"P-256", "ecdsa", hsm.CreateRequest{Type: "ec", Curve: "secp256r1"}, func() error {
			_, err := ecdsa.SignASN1(rand.Reader, ec, digest[:])
			return err
		}},
		{"RSA-2048", "rsa-pkcs", hsm.CreateRequest{Type: "rsa", Size: 2048}, func() error {
			_, err := rsa.SignPKCS1v15(nil, rs, 5, digest[:])
			return err
		}},
	}
	for _, tc := range cases {
		r := tc.request
		r.Method, r.Token, r.Attributes = hsm.MethodGenerate, true, map[string]string{"label": tc.name, "sign": "true"}
		made, err := c.Create(b.Context(), r, cluster.Policy{})
		if err != nil {
			b.Fatal(err)
		}
		use := hsm.Use{Kind: hsm.UseSign, Key: made.Keys[0].Ref, Params: hsm.Params{Mechanism: tc.mechanism, Hash: "sha256"}, Data: []byte("figures")}
		for _, callers := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/callers=%d", tc.name, callers), func(b *testing.B) {
				parallel(b, callers, func(int) error {
					_, err := c.Use(b.Context(), use)
					return err
				})
			})
			b.Run(fmt.Sprintf("%s/limit=raw,callers=%d", tc.name, callers), func(b *testing.B) {
				parallel(b, callers, func(int) error { return tc.raw() })
			})
		}
	}
}
