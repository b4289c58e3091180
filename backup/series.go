package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// Series takes one snapshot after the other of one cluster into one store. It
// remembers the newest one, so that nothing is listed and nothing but a missing
// name is read as long as nothing has changed. What it remembers are hashes; if
// the process dies, the next one looks again. It is safe for concurrent use; takes
// come one at a time.
type Series struct {
	origin  Origin
	store   storage.Store
	options TakeOptions

	busy   sync.Mutex // held while a snapshot is taken
	desc   *Description
	known  *format.Manifest // the newest snapshot of the cluster; nil: to be looked for
	items  *catalog         // of known
	looked time.Time        // when the whole store was looked at
	above  bool             // others have higher numbers than known, and some between may be used up

	envelope struct { // the last one that was read, by its hash
		there   bool
		name    format.Name
		content format.Envelope
	}

	mu     sync.Mutex
	status Status
}

// relook is how long a series trusts what it has seen of the store: that the
// packs which the next increment builds on are there.
const relook = 10 * time.Minute

// maxFollow bounds how many snapshots of others a series follows one by one.
const maxFollow = 16

// NewSeries returns a series that has not looked at anything yet.
func NewSeries(origin Origin, store storage.Store, o TakeOptions) *Series {
	return &Series{origin: origin, store: store, options: o}
}

// Take takes the next snapshot; see the function Take for what it promises.
func (s *Series) Take(ctx context.Context) (*Report, error) {
	s.busy.Lock()
	defer s.busy.Unlock()
	t := &take{series: s, origin: s.origin, store: s.store, options: s.options, begun: time.Now()}
	if !s.options.begun.IsZero() {
		t.begun = s.options.begun
	}
	report, err := t.run(ctx)
	if err != nil {
		s.forget()
		err = fmt.Errorf("snapshot: %w", err)
		s.failed(err)
		return nil, err
	}
	report.Elapsed = time.Since(t.begun)
	s.succeeded(report)
	return report, nil
}

// forget makes the next take look at the whole store.
func (s *Series) forget() { s.known, s.items, s.desc, s.envelope.there = nil, nil, nil, false }

// learn remembers the newest snapshot. added are packs of it whose items are at
// hand.
func (s *Series) learn(m *format.Manifest, added []packed) {
	have := map[format.Name][]hsm.Object{}
	if s.items != nil {
		s.items.remember(have)
	}
	for _, p := range added {
		have[p.entry.Index] = p.items
	}
	s.known, s.items = m, &catalog{store: s.store, lineage: m.Lineage, packs: m.Packs, have: have}
}

// follow tells whether known is the newest snapshot, having learned those that
// other hosts have taken since. If it cannot tell, the store is to be listed.
func (s *Series) follow(ctx context.Context) bool {
	if s.known == nil || s.above || time.Since(s.looked) > relook {
		return false
	}
	for range maxFollow {
		m, _, err := loadManifest(ctx, s.store, s.known.Sequence+1)
		switch {
		case errors.Is(err, ErrNoSnapshot):
			return true
		case err != nil || m.Lineage != s.known.Lineage || m.Cluster != s.known.Cluster:
			return false
		}
		s.learn(m, nil)
	}
	return false
}

// Status is how a series fares.
type Status struct {
	Newest  string    // id of the newest snapshot; "" before the first
	Taken   time.Time // when the newest snapshot was begun
	Covered time.Time // everything that was acknowledged before, and that an answering HSM held, is in the store
	Missing []hsm.HSMID
	// Counts since the series began.
	Takes, Unchanged, Failures int
	Bytes                      uint64 // stored
	Failing                    error  // why the last take failed; nil if it did not
}

// Status returns how the series fares now.
func (s *Series) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Series) succeeded(r *Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.status
	st.Takes++
	st.Newest, st.Covered, st.Missing, st.Failing = r.ID, r.Started, r.Coverage.Missing, nil
	st.Bytes += r.BytesStored
	if s.known != nil {
		st.Taken = s.known.Started
	}
	if r.Unchanged {
		st.Unchanged++
	}
}

func (s *Series) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Takes++
	s.status.Failures++
	s.status.Failing = err
}

// keyed is a source whose fingerprint keys are known: the lineage's.
type keyed struct {
	hsm.Sketcher
	keys hsm.FingerprintKeys
}

func (k keyed) FingerprintKeys(context.Context) (hsm.FingerprintKeys, error) { return k.keys, nil }
