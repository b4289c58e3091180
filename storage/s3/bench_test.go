package s3

import (
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

// BenchmarkStore is bounded by the server, which writes what
// BenchmarkLimitRawFile of package file writes, and hashes it.
func BenchmarkStore(b *testing.B) {
	server := miniotest.Start(b)
	server.CreateBucket("bucket")
	storagetest.Benchmark(b, mustOpen(b, configOf(server, "bucket")))
}
