package remotetest

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/integration/pinned"
	"github.com/hsmbackup/hsmbackup/integration/versitytest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

// makes are the servers that both drivers are judged against. What one of them
// does is a habit; what both do is S3.
var makes = []struct {
	name     string
	start    func(t testing.TB) *pinned.Server
	startTLS func(t testing.TB, a *pinned.Authority) *pinned.Server
}{
	{"MinIO", miniotest.Start, miniotest.StartTLS},
	{"versitygw", versitytest.Start, versitytest.StartTLS},
}

// Conformance runs the suite of storagetest on one driver, against each server,
// without TLS and with the certificate of a private authority.
func Conformance(t *testing.T, open Opener) {
	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) { conform(t, m.start(t), open) })
		t.Run(m.name+" over TLS", func(t *testing.T) { conform(t, m.startTLS(t, pinned.NewAuthority(t)), open) })
	}
}

func conform(t *testing.T, server *pinned.Server, open Opener) {
	server.CreateBucket(bucketName)
	var n atomic.Int64
	storagetest.Run(t, func(t *testing.T) storage.Store {
		p := placeOf(server)
		p.Prefix = fmt.Sprintf("Some/Prefix-%d", n.Add(1))
		return open(t, p)
	})
}

func placeOf(server *pinned.Server) Place {
	return Place{
		Host: server.Host(), TLS: server.CA() != "", CA: server.CA(), Bucket: bucketName,
		Keys: storage.NewKeys(server.AccessKey, server.SecretKey, ""), Options: quick,
	}
}
