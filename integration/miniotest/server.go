// Package miniotest runs the pinned MinIO server for tests: a real process on a
// free loopback port with its data in a temporary folder. A test that asks for
// it never skips; without the server it fails and says why.
package miniotest

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/pinned"
)

// Binary returns the path of the pinned MinIO server, built on first use from
// the module integration/minio.
var Binary = sync.OnceValues(pinned.Program{
	Module: "minio", Package: "github.com/minio/minio", Name: "minio",
	Cost: "takes several minutes and downloads 1.2 GB of modules",
}.Binary)

// Server is a running MinIO.
type Server = pinned.Server

// Start starts a server of its own for the test and stops it when the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	return pinned.StartServer(t, minio, nil, "")
}

// StartTLS starts a server that speaks TLS only, with a certificate of a.
func StartTLS(t testing.TB, a *pinned.Authority) *Server {
	t.Helper()
	return pinned.StartServer(t, minio, a, "")
}

var minio = pinned.Make{
	Binary: Binary,
	Health: "/minio/health/cluster",
	Arguments: func(l pinned.Launch) []string {
		args := []string{"server", "--quiet", "--address", l.Host, "--console-address", "127.0.0.1:0"}
		if l.CertFile != "" {
			args = append(args, "--certs-dir", filepath.Dir(l.CertFile))
		}
		return append(args, l.Data)
	},
	Environment: func(l pinned.Launch) []string {
		return []string{
			"MINIO_ROOT_USER=" + l.AccessKey,
			"MINIO_ROOT_PASSWORD=" + l.SecretKey,
			"MINIO_SITE_REGION=us-east-1", // or any would do
			"MINIO_BROWSER=off",
			"MINIO_UPDATE=off",
			"MINIO_CI_CD=1", // a root disk will do
			"MINIO_CONFIG_DIR=" + filepath.Join(l.Home, "config"),
		}
	},
}
