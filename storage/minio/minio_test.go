package minio

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remotetest"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

func configOf(s *miniotest.Server, bucket string) Config {
	return Config{Host: s.Host(), Bucket: bucket, NoTLS: true, Keys: storage.NewKeys(s.AccessKey, s.SecretKey, "")}
}

func mustOpen(t testing.TB, c Config) storage.Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	server := miniotest.Start(t)
	server.CreateBucket("bucket")
	var n atomic.Int64
	storagetest.Run(t, func(t *testing.T) storage.Store {
		c := configOf(server, "bucket")
		c.Prefix = fmt.Sprintf("Some/Prefix-%d", n.Add(1))
		return mustOpen(t, c)
	})
}

func TestFaults(t *testing.T) {
	remotetest.Run(t, func(t testing.TB, p remotetest.Place) storage.Store {
		s, err := open(Config{Host: p.Host, Bucket: p.Bucket, Prefix: p.Prefix, Region: p.Region, CA: p.CA, NoTLS: !p.TLS, Keys: p.Keys}, p.Retry)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
