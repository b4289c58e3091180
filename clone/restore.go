package clone

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// Restored is what a restore did.
type Restored struct {
	Profile  *profile.Profile
	Snapshot string
	Objects  int
	Bytes    int64
	Root     string // of every HSM of the clone; hexadecimal
	// RootEqual is false only for an unsettled snapshot (backup/FORMAT.md),
	// whose manifest cannot tell the root its contents merge to.
	RootEqual bool
	// Missing are the HSMs of the source that did not answer when the snapshot was taken.
	Missing []hsm.HSMID
	// Resumed is how many objects were there from a call that was killed.
	Resumed int
	Seconds float64
}

// Restore makes a new cluster from a snapshot that was opened with identities:
// a new cluster id, the same lineage, users, keys, references and trust anchor.
// spec says where and how large; its keyring, CA and objects come from the
// snapshot. The folder appears whole, every HSM with the root of the snapshot's
// manifest, or not at all. If the process dies, the same call goes on with what had
// been loaded by then, and does not read it from the store again; a call that
// fails leaves nothing.
//
// backup.ErrIdentity if the identities are not those of enough custodians;
// backup.ErrCorrupt if anything of the snapshot is damaged or missing, or does
// not add up to its root; server.ErrFolder if the folder is not empty.
func Restore(ctx context.Context, s *backup.Snapshot, spec server.Spec, progress func(done, total, bytes int64)) (*Restored, error) {
	return restore(ctx, s, spec, progress, nil)
}

// restore is Restore with a look at the first HSM once it is filled.
func restore(ctx context.Context, s *backup.Snapshot, spec server.Spec, progress func(done, total, bytes int64), look func(ctx context.Context, k *hsm.Keyring, in hsm.Session) error) (*Restored, error) {
	start := time.Now()
	keyring, ca, err := s.Recovery(ctx)
	if err != nil {
		return nil, err
	}
	defer ca.Wipe()
	r := &Restored{Snapshot: s.ID(), Missing: s.Summary().Missing}
	spec.Keyring, spec.CA = keyring, ca
	spec.Source = fmt.Sprintf("snapshot %s of %s", r.Snapshot, s.Summary().Cluster)
	spec.Fill = func(ctx context.Context, into hsm.Session) error {
		if err := r.fill(ctx, s, into, progress); err != nil || look == nil {
			return err
		}
		return look(ctx, keyring, into)
	}
	if r.Profile, err = server.Create(ctx, spec); err != nil {
		return nil, err
	}
	r.Seconds = time.Since(start).Seconds()
	return r, nil
}

// fill copies the snapshot into the first HSM and compares roots.
func (r *Restored) fill(ctx context.Context, s *backup.Snapshot, into hsm.Session, progress func(done, total, bytes int64)) error {
	c := &counter{report: progress, total: int64(s.Summary().Objects)}
	var err error
	if loader, ok := into.(hsm.Loader); ok {
		r.Resumed, err = load(ctx, s, loader, into, c)
	} else {
		_, err = reconcile.Copy(ctx, s, into, reconcile.OnProgress(func(a reconcile.Progress) { c.set(int64(a.Objects), a.Bytes) }))
	}
	if err != nil {
		return fmt.Errorf("restore snapshot %s: %w", r.Snapshot, err)
	}
	want, err := s.Root(ctx)
	if err != nil {
		return err
	}
	got, err := into.Root(ctx)
	if err != nil {
		return err
	}
	r.Objects, r.Bytes, r.Root, r.RootEqual = int(c.done), c.bytes, hex.EncodeToString(got.Sum[:]), got == want
	if !r.RootEqual && s.Settled() {
		return fmt.Errorf("%w: snapshot %s restores to another root than its manifest states", backup.ErrCorrupt, r.Snapshot)
	}
	return nil
}

// load fills an empty HSM: with the objects of which the snapshot holds one state
// as they are, and then with the others, which merge. resumed is how many were there
// from a load that died.
func load(ctx context.Context, s *backup.Snapshot, loader hsm.Loader, into hsm.Replica, c *counter) (resumed int, err error) {
	parts, err := s.Parts(ctx)
	if err != nil {
		return 0, err
	}
	for i, p := range parts {
		parts[i] = c.count(p)
	}
	n, err := loader.Load(ctx, s.PartsName(), parts)
	if err != nil {
		return 0, err
	}
	if c.found(int64(n.Unchanged)); s.Settled() {
		return n.Unchanged, nil
	}
	_, err = into.Insert(ctx, c.count(s.Extract(ctx, slices.Values(s.Unsettled()))))
	return n.Unchanged, err
}

// counter counts objects as they pass. It is safe for concurrent use.
type counter struct {
	report func(done, total, bytes int64)
	total  int64

	mu          sync.Mutex
	done, bytes int64
}

func (c *counter) set(done, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.bytes = done, bytes
	if c.report != nil {
		c.report(c.done, c.total, c.bytes)
	}
}

// found counts objects that need not pass.
func (c *counter) found(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += n
}

// countStep is how many objects pass between two reports.
const countStep = 256

func (c *counter) count(in iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		var n, bytes int64
		flush := func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.done, c.bytes = c.done+n, c.bytes+bytes
			n, bytes = 0, 0
			if c.report != nil {
				c.report(c.done, c.total, c.bytes)
			}
		}
		defer flush()
		for m, err := range in {
			if err == nil {
				n, bytes = n+1, bytes+int64(len(m.Bytes))
			}
			if !yield(m, err) {
				return
			}
			if n == countStep {
				flush()
			}
		}
	}
}
