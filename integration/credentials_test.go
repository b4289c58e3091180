package integration

import (
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/minio/minio-go/v7"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
)

// policies reads the three policies out of the document that recommends them,
// for a bucket and a prefix.
func policies(t *testing.T, bucket, prefix string) map[string]string {
	t.Helper()
	document := read(t, filepath.Join(repository(), "backup", "CREDENTIALS.md"))
	out := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```json (\\w+)\n(.*?)```").FindAllStringSubmatch(document, -1) {
		policy := strings.ReplaceAll(m[2], "arn:aws:s3:::backups/payments", "arn:aws:s3:::"+bucket+"/"+prefix)
		policy = strings.ReplaceAll(policy, `"arn:aws:s3:::backups"`, `"arn:aws:s3:::`+bucket+`"`)
		if !json.Valid([]byte(policy)) {
			t.Fatalf("the policy %s is no JSON", m[1])
		}
		out[m[1]] = policy
	}
	if len(out) != 3 {
		t.Fatalf("%d policies in the document", len(out))
	}
	return out
}

// restricted is a machine with keys that may do what a policy says.
func restricted(t *testing.T, m *machine, s *miniotest.Server, policy string) *machine {
	t.Helper()
	access, secret, session := s.Restricted(policy)
	return m.with("MINIO_ACCESS_KEY=", "MINIO_SECRET_KEY=", "AWS_ACCESS_KEY_ID="+access, "AWS_SECRET_ACCESS_KEY="+secret, "AWS_SESSION_TOKEN="+session, "AWS_REGION=us-east-1")
}

// TestThreeKindsOfCredentials gives the program the policies of CREDENTIALS.md,
// as a real server enforces them, and object lock on top.
func TestThreeKindsOfCredentials(t *testing.T) {
	t.Parallel()
	minio := miniotest.Start(t)
	for _, bucket := range []string{"backups", "copies"} {
		minio.CreateLockableBucket(bucket)
	}
	b := newBackedUp(t, newMachine(t))
	m := b.nobody()
	for name, location := range map[string]string{"minio": minio.MinioLocation("backups/minio"), "s3": minio.S3Location("backups/s3")} {
		t.Run(name, func(t *testing.T) {
			p := policies(t, "backups", name)
			backup, reader, pruner := restricted(t, m, minio, p["backup"]), restricted(t, m, minio, p["read"]), restricted(t, m, minio, p["prune"])
			snapshot := []string{"snapshot", "--cluster", b.path("east"), "--to", location}

			backup.ok(t, append(snapshot, "--lock-for", "1h")...)
			before := time.Now()
			b.generate(t, "later-"+name)
			backup.ok(t, append(snapshot, "--lock-for", "3h")...)
			mustBeLocked(t, minio, "backups", name, before.Add(3*time.Hour), 7)
			backup.ok(t, append(snapshot, "--full", "--tag", "lock=none")...)
			backup.ok(t, append(snapshot, "--full")...)

			reader.refused(t, 1, "storage", append(snapshot, "--full")...)
			pruner.refused(t, 1, "storage", append(snapshot, "--full")...)
			for _, who := range []*machine{backup, reader} {
				who.refused(t, 1, "storage", "snapshots", "delete", location, "1")
				// The plan is shown, and cannot be carried out.
				if r := who.run(t, "snapshots", "prune", location, "--keep-last", "1", "--now"); r.code != 1 || !strings.Contains(r.stderr, "access denied") {
					t.Error(r)
				}
			}
			var v struct {
				OK, Recorded bool
				Note         string
			}
			reader.json(t, &v, "snapshots", "verify", location, "--level", "use", "--identity", b.identity)
			if !v.OK || v.Recorded || !strings.Contains(v.Note, "access denied") {
				t.Errorf("%+v", v)
			}
			reader.ok(t, b.restore(location, "west-"+name)...)

			var done struct {
				Done struct{ Removed, Locked []string }
			}
			pruner.json(t, &done, "snapshots", "prune", location, "--keep-last", "1", "--now", "--grace", "0s")
			if !slices.Equal(done.Done.Removed, []string{"0000000003"}) || !slices.Equal(done.Done.Locked, []string{"manifests/0000000001", "manifests/0000000002"}) {
				t.Fatalf("%+v", done)
			}
			wantStates(t, reader.listed(t, location), "0000000001 READY", "0000000002 READY", "0000000004 READY")
			pruner.refused(t, 1, "storage", "snapshots", "lock", location, "4", "--for", "2h")
			backup.ok(t, "snapshots", "lock", location, "4", "--for", "2h", "--lock-mode", "compliance")
			backup.refused(t, 2, "usage", "snapshots", "lock", location, "4")

			// Copy: read-only at the source, append-only at the destination.
			to := strings.Replace(location, "backups/", "copies/", 1)
			src, dst := []string{}, []string{}
			for _, side := range []struct {
				env    *[]string
				name   string
				policy string
			}{{&src, "SRC", p["read"]}, {&dst, "DST", policies(t, "copies", name)["backup"]}} {
				access, secret, session := minio.Restricted(side.policy)
				*side.env = append(*side.env, "HSMBACKUP_"+side.name+"_ACCESS_KEY="+access, "HSMBACKUP_"+side.name+"_SECRET_KEY="+secret, "HSMBACKUP_"+side.name+"_SESSION_TOKEN="+session)
			}
			copier := m.with(src...).with(dst...).with("AWS_REGION=us-east-1")
			var copied struct {
				Copies []struct {
					ID     string
					Copied int `json:"objects_copied"`
				}
			}
			copier.json(t, &copied, "snapshots", "copy", "--from", location, "--to", to, "--all", "--lock-for", "2h")
			if len(copied.Copies) != 3 || copied.Copies[2].Copied == 0 {
				t.Fatalf("%+v", copied)
			}
			mustBeLocked(t, minio, "copies", name, before.Add(2*time.Hour), 10)
			there := restricted(t, m, minio, policies(t, "copies", name)["read"])
			l := there.listed(t, to)
			if wantStates(t, l, "0000000001 READY", "0000000002 READY", "0000000004 READY"); l.Snapshots[2].Copy == nil || !strings.Contains(l.Snapshots[2].Copy.Source, "backups/"+name) {
				t.Fatalf("%+v", l)
			}
			there.ok(t, "snapshots", "verify", to, "--all", "--level", "root", "--identity", b.identity)
			m.with(dst...).with(src...).refused(t, 1, "storage", "snapshots", "copy", "--from", to, "--to", location) // the keys of the other side
		})
	}
	t.Run("a folder has no locks", func(t *testing.T) {
		m.refused(t, 1, "storage", "snapshot", "--cluster", b.path("east"), "--to", b.store, "--lock-for", "1h")
	})
}

// mustBeLocked demands that all packs, indexes, envelopes and manifests below a
// prefix that are locked at all stay so until a time, and that there are so many.
func mustBeLocked(t *testing.T, s *miniotest.Server, bucket, prefix string, until time.Time, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c, n := s.Client(), 0
	for o := range c.ListObjects(ctx, bucket, client.ListObjectsOptions{Prefix: prefix + "/", Recursive: true}) {
		must(t, o.Err)
		folder, _, _ := strings.Cut(strings.TrimPrefix(o.Key, prefix+"/"), "/")
		if !slices.Contains([]string{"packs", "index", "envelopes", "manifests"}, folder) {
			continue
		}
		_, end, err := c.GetObjectRetention(ctx, bucket, o.Key, "")
		if err != nil || end == nil {
			t.Errorf("%s is not locked: %v", o.Key, err)
			continue
		}
		if n++; end.Before(until) && folder != "manifests" {
			t.Errorf("%s is locked until %s, want %s", o.Key, end, until)
		}
	}
	if n < want {
		t.Errorf("%d objects are locked, want %d at least", n, want)
	}
}
