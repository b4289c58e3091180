package minio

import (
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remotetest"
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

func TestConformance(t *testing.T) { remotetest.Conformance(t, openPlace) }

func TestTLS(t *testing.T) { remotetest.TLS(t, openPlace) }

func TestFaults(t *testing.T) { remotetest.Run(t, openPlace) }

func openPlace(t testing.TB, p remotetest.Place) storage.Store {
	s, err := open(Config{Host: p.Host, Bucket: p.Bucket, Prefix: p.Prefix, Region: p.Region, CA: p.CA, NoTLS: !p.TLS, Keys: p.Keys}, p.Options)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
