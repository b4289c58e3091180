package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	client "github.com/minio/minio-go/v7"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/integration/pinned"
	"github.com/hsmbackup/hsmbackup/integration/versitytest"
)

// TestObjectLock locks snapshots in buckets of both servers through both drivers, and
// tries with all rights to delete what is locked.
func TestObjectLock(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	for name, start := range map[string]func(testing.TB) *pinned.Server{"minio": miniotest.Start, "versitygw": versitytest.Start} {
		t.Run(name, func(t *testing.T) {
			server := start(t)
			server.CreateLockableBucket("locked")
			server.CreateBucket("open")
			m := b.nobody().with(server.Env()...)
			for driver, location := range map[string]string{"s3": server.S3Location("locked/s3"), "minio": server.MinioLocation("locked/minio")} {
				lockedSnapshots(t, m, location)
				bypass(t, server, driver+"/manifests/0000000001", true)
				bypass(t, server, driver+"/manifests/0000000002", false)
				wantLine(t, m.refused(t, 1, "storage", "snapshot", "--to", strings.Replace(location, "locked/", "open/", 1), "--lock-for", "1h"), "does not lock objects")
			}
		})
	}
}

// lockedSnapshots makes one snapshot in governance and one in compliance, and sees
// that each command says what holds.
func lockedSnapshots(t *testing.T, m *machine, location string) {
	t.Helper()
	lock := func(id string, more ...string) result {
		return m.run(t, append([]string{"snapshots", "lock", location, id}, more...)...)
	}
	m.refused(t, 2, "usage", "snapshot", "--to", location, "--lock-mode", "compliance")
	m.ok(t, "snapshot", "--to", location, "--lock-for", "1h")
	if r := lock("1", "--for", "2h", "--lock-mode", "compliance"); r.code != 3 || !strings.Contains(r.stdout, "(governance) at least") || !strings.Contains(r.stdout, "may bypass") {
		t.Errorf("compliance on governance: %v", r)
	}
	if out := m.ok(t, "snapshot", "--to", location, "--lock-for", "1h", "--lock-mode", "compliance"); !strings.Contains(out, "note: 3 objects that it needs were locked in mode governance") {
		t.Errorf("it does not say that what it builds on is locked less firmly: %s", out)
	}
	if out := m.ok(t, "snapshot", "--to", location, "--full", "--lock-for", "1h", "--lock-mode", "compliance"); strings.Contains(out, "note: ") {
		t.Errorf("nothing of a full snapshot was locked before: %s", out)
	}
	later := time.Now().Add(30 * time.Hour).UTC().Truncate(time.Minute).Add(30 * time.Second) // the answer may be a second later, of the same minute
	if r := lock("2", "--until", later.Format(time.RFC3339)); r.code != 0 || !strings.Contains(r.stdout, "(compliance) at least until "+later.Format("2006-01-02T15:04")) {
		t.Errorf("extended: %v", r)
	}
	if r := lock("2", "--for", "10m"); r.code != 0 || !strings.Contains(r.stdout, "until "+later.Format("2006-01-02T15:04")) {
		t.Errorf("not shortened, and says so: %v", r)
	}
	m.ok(t, "snapshot", "--to", location, "--full")
	r := m.run(t, "snapshots", "prune", location, "--keep-last", "1", "--now", "--grace", "0s")
	if r.code != 0 || !strings.Contains(r.stdout, "kept by a lock: manifests/0000000001, manifests/0000000002") || !strings.Contains(r.stdout, "0 removed; 0 objects removed") {
		t.Errorf("prune of what is locked: %v", r)
	}
	m.ok(t, "snapshots", "verify", location, "--all")
}

// bypass deletes the newest version of an object with the right to bypass governance.
func bypass(t *testing.T, s *pinned.Server, key string, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	info, err := s.Client().StatObject(ctx, "locked", key, client.StatObjectOptions{})
	must(t, err)
	err = s.Client().RemoveObject(ctx, "locked", key, client.RemoveObjectOptions{VersionID: info.VersionID, GovernanceBypass: true})
	if (err == nil) != want {
		t.Errorf("%s is deleted by who may bypass governance: %v, want %t", key, err, want)
	}
}
