package file_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

func BenchmarkStore(b *testing.B) { storagetest.Benchmark(b, open(b, b.TempDir())) }

// BenchmarkLimitRawFile is the physical limit: the same bytes into new files,
// written and synced.
func BenchmarkLimitRawFile(b *testing.B) {
	content := storagetest.BenchmarkContent()
	folder := b.TempDir()
	b.SetBytes(int64(len(content)))
	i := 0
	for b.Loop() {
		f, err := os.Create(filepath.Join(folder, strconv.Itoa(i)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(content); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		f.Close()
		os.Remove(f.Name())
		i++
	}
}
