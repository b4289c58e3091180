// Package versitytest runs the pinned versitygw for tests: a second S3 server,
// written by others than MinIO, so that no habit of one server passes for S3. It
// is a real process on a free loopback port that keeps its objects as files in a
// temporary folder. A test that asks for it never skips; without the server it
// fails and says why.
package versitytest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/pinned"
)

// Binary returns the path of the pinned versitygw, built on first use from the
// module integration/versitygw.
var Binary = sync.OnceValues(pinned.Program{
	Module: "versitygw", Package: "github.com/versity/versitygw/cmd/versitygw", Name: "versitygw",
	Cost: "takes a few minutes",
}.Binary)

// Server is a running versitygw.
type Server = pinned.Server

// Start starts a server of its own for the test and stops it when the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	return pinned.StartServer(t, versity, nil, "")
}

// StartTLS starts a server that speaks TLS only, with a certificate of a.
func StartTLS(t testing.TB, a *pinned.Authority) *Server {
	t.Helper()
	return pinned.StartServer(t, versity, a, "")
}

var versity = pinned.Make{
	Binary: Binary,
	Health: "/health",
	Prepare: func(l pinned.Launch) error {
		for _, name := range []string{"versions", "sidecar", "iam"} {
			if err := os.Mkdir(filepath.Join(l.Home, name), 0o700); err != nil {
				return err
			}
		}
		return nil
	},
	Arguments: func(l pinned.Launch) []string {
		args := []string{"--port", l.Host, "--region", "us-east-1", "--health", "/health", "--quiet", "--iam-dir", filepath.Join(l.Home, "iam")}
		if l.CertFile != "" {
			args = append(args, "--cert", l.CertFile, "--key", l.KeyFile)
		}
		// Metadata beside the objects, since not every file system has room for it.
		return append(args, "posix", "--versioning-dir", filepath.Join(l.Home, "versions"), "--sidecar", filepath.Join(l.Home, "sidecar"), l.Data)
	},
	Environment: func(l pinned.Launch) []string {
		return []string{"ROOT_ACCESS_KEY=" + l.AccessKey, "ROOT_SECRET_KEY=" + l.SecretKey}
	},
}
