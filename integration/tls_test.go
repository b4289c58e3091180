package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/integration/pinned"
	"github.com/hsmbackup/hsmbackup/integration/versitytest"
)

// TestStoresOverTLS takes snapshots to servers with certificates of a private
// authority, which is named in each of the ways the README tells, and sees the
// program refuse what it must.
func TestStoresOverTLS(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	for name, start := range map[string]func(testing.TB, *pinned.Authority) *pinned.Server{"minio": miniotest.StartTLS, "versitygw": versitytest.StartTLS} {
		t.Run(name, func(t *testing.T) {
			server := start(t, pinned.NewAuthority(t))
			server.CreateBucket("backups")
			keys := b.nobody().with(server.Env()...)
			system := keys.with("SSL_CERT_FILE="+server.CA(), "SSL_CERT_DIR="+t.TempDir())
			bundle := keys.with("AWS_CA_BUNDLE=" + server.CA())
			for driver, location := range map[string]string{"s3": server.S3Location("backups/s3"), "minio": server.MinioLocation("backups/minio")} {
				keys.ok(t, "snapshot", "--to", location)
				bare := withoutCA(location)
				bundle.ok(t, "snapshots", bare)
				system.ok(t, "snapshots", bare)
				untrusted := keys.with("SSL_CERT_FILE="+os.DevNull, "SSL_CERT_DIR="+t.TempDir())
				wantLine(t, untrusted.refused(t, 1, "storage", "snapshots", bare), "not trusted")
				wantLine(t, keys.with("AWS_CA_BUNDLE="+os.DevNull).refused(t, 1, "storage", "snapshots", bare), "AWS_CA_BUNDLE")
				plain := strings.Replace(bare, "https://", "http://", 1)
				if driver == "minio" {
					plain += "?tls=false"
				}
				wantLine(t, keys.refused(t, 1, "storage", "snapshots", plain), "speaks TLS")
			}
		})
	}
}

// withoutCA takes the parameter ca, the last one, off a location.
func withoutCA(location string) string {
	at := strings.LastIndexAny(location, "?&")
	return location[:at]
}

func wantLine(t *testing.T, line, part string) {
	t.Helper()
	if !strings.Contains(line, part) {
		t.Errorf("the error %q does not say %q", line, part)
	}
}
