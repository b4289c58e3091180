package remotetest

import (
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/pinned"
	"github.com/hsmbackup/hsmbackup/storage"
)

// TLS tests one driver against servers whose certificates are not trusted, have
// expired, or that speak TLS where none is expected.
func TLS(t *testing.T, open Opener) {
	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) {
			server := m.startTLS(t, pinned.NewAuthority(t))
			server.CreateBucket(bucketName)
			s := &suite{server: server, driver: open}
			place := placeOf(server)
			t.Run("trusted", func(t *testing.T) {
				put(t, open(t, place), "a", "over TLS")
				wantContent(t, open(t, place), "a", "over TLS")
			})
			t.Run("unknown authority", func(t *testing.T) {
				unknown := place
				unknown.CA = ""
				s.wantEvery(t, open(t, unknown), storage.ErrTLS)
				unknown.CA = pinned.NewAuthority(t).File()
				s.wantEvery(t, open(t, unknown), storage.ErrTLS)
			})
			t.Run("AWS_CA_BUNDLE", func(t *testing.T) {
				t.Setenv("AWS_CA_BUNDLE", server.CA())
				bundle := place
				bundle.CA = ""
				wantContent(t, open(t, bundle), "a", "over TLS")
			})
			t.Run("plain", func(t *testing.T) {
				plain := place
				plain.TLS, plain.CA = false, ""
				for method, err := range every(t.Context(), open(t, plain)) {
					s.wantErr(t, method, err, storage.ErrUnreachable)
					if !strings.Contains(err.Error(), "TLS") {
						t.Errorf("%s does not say that the server speaks TLS: %v", method, err)
					}
				}
			})
		})
	}
}
