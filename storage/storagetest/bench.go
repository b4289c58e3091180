package storagetest

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/hsmbackup/hsmbackup/storage"
)

// BenchmarkContent returns the 16 MiB, the size of a small pack, that Benchmark
// puts and gets.
func BenchmarkContent() []byte { return random(16 << 20) }

// Benchmark measures one Put and one Get of 16 MiB at a time, and Puts and Gets
// of 4 KiB.
func Benchmark(b *testing.B, s storage.Store) {
	for _, content := range [][]byte{BenchmarkContent(), random(4 << 10)} {
		size := int64(len(content))
		b.Run(fmt.Sprintf("Put/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(size)
			run := fmt.Sprintf("put-%d-%d", size, b.N)
			for i := 0; b.Loop(); i++ {
				name := fmt.Sprintf("%s/%d", run, i)
				if err := s.Put(b.Context(), name, bytes.NewReader(content), size); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := s.Delete(b.Context(), name); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("Get/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(size)
			name := fmt.Sprintf("get-%d", size)
			if err := s.Put(b.Context(), name, bytes.NewReader(content), size); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				r, err := s.Get(b.Context(), name, 0, -1)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); n != size || err != nil {
					b.Fatal(n, err)
				}
				r.Close()
			}
			b.StopTimer()
			if err := s.Delete(b.Context(), name); err != nil {
				b.Fatal(err)
			}
		})
	}
}
