package s3

import (
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remotetest"
)

func configOf(s *miniotest.Server, bucket string) Config {
	return Config{Endpoint: s.Endpoint(), Bucket: bucket, Region: "us-east-1", Keys: storage.NewKeys(s.AccessKey, s.SecretKey, "")}
}

func mustOpen(t testing.TB, c Config) storage.Store {
	t.Helper()
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) { remotetest.Conformance(t, openPlace) }

func TestTLS(t *testing.T) { remotetest.TLS(t, openPlace) }

func TestFaults(t *testing.T) { remotetest.Run(t, openPlace) }

func openPlace(t testing.TB, p remotetest.Place) storage.Store {
	endpoint := "http://" + p.Host
	if p.TLS {
		endpoint = "https://" + p.Host
	}
	s, err := open(t.Context(), Config{Endpoint: endpoint, Bucket: p.Bucket, Prefix: p.Prefix, Region: p.Region, CA: p.CA, Keys: p.Keys}, p.Options)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
