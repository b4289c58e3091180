package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// maxLacks bounds the objects whose absence at a peer is followed one by one;
// further ones are only counted.
const maxLacks = 1 << 16

// progress is what server-side sync with one peer has come to, for those who
// watch. It decides nothing.
type progress struct {
	mu sync.Mutex
	progressNumbers
	// lacks holds the objects of ours that the peer did not have when it was
	// last asked, and since when; more counts those beyond maxLacks.
	lacks map[hsm.KeyRef]time.Time
	more  int
	held  uint64 // objects we had when it was last asked
	// Of a peer that does not answer it is not known what it lacks: all that is
	// new since.
	failing bool
	why     error     // of the last round that failed
	behind  time.Time // when something new was first seen meanwhile
}

// progressNumbers only grow, but for synced.
type progressNumbers struct {
	equal, pulls, failures   uint64 // rounds
	sketchBytes, objectBytes int64
	added, changed           int // objects
	conflicts                int
	synced                   time.Time     // end of the last round that ended well
	ahead                    time.Duration // how far its clock is ahead of ours
	clockAt                  time.Time     // when it told; zero: never
}

// looked ends a round in which the peer answered, and we had so many objects.
func (p *progress) looked(equal bool, held uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced, p.held, p.failing, p.why, p.behind = time.Now(), held, false, nil, time.Time{}
	if equal {
		p.equal++
		p.lacks, p.more = nil, 0
		return
	}
	p.pulls++
}

// pulled counts what was brought over.
func (p *progress) pulled(s reconcile.Synced) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sketchBytes += s.SketchBytes
	p.objectBytes += s.Bytes
	p.added += s.Added
	p.changed += s.Inserted.Changed
	p.conflicts += len(s.Conflicts)
}

// lacking replaces what the peer lacks: these, of so many in all.
func (p *progress) lacking(refs map[hsm.KeyRef]bool, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, lacks := time.Now(), make(map[hsm.KeyRef]time.Time, len(refs))
	for ref := range refs {
		since, known := p.lacks[ref]
		if !known {
			since = now
		}
		lacks[ref] = since
	}
	p.lacks, p.more = lacks, all-len(refs)
}

// clock notes how far the peer's clock is ahead of ours.
func (p *progress) clock(ahead time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead, p.clockAt = ahead, time.Now()
}

// failed ends a round that failed, in which we had so many objects.
func (p *progress) failed(held uint64, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures++
	p.failing, p.why = true, why
	if held > p.held && p.behind.IsZero() {
		p.behind = time.Now()
	}
}

// missing returns how many of our objects, of which there are so many now, are
// not known to be at the peer, and since when the first is not.
func (p *progress) missing(held uint64) (n int, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = len(p.lacks) + p.more
	for _, at := range p.lacks {
		if since.IsZero() || at.Before(since) {
			since = at
		}
	}
	if !p.failing || held <= p.held {
		return n, since
	}
	if since.IsZero() {
		since = p.behind
	}
	return n + int(held-p.held), since
}

func (p *progress) numbers() progressNumbers {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.progressNumbers
}

// missed notes a round that failed.
func (s *syncer) missed(ctx context.Context, p *peer, why error) {
	if ours, err := s.session.Info(ctx); err == nil {
		p.progress.failed(ours.Root.Count, why)
	}
}

// whyNot says of each peer with which the last round failed what it failed for.
func (s *syncer) whyNot() string {
	var reasons []string
	for id, p := range s.watched() {
		p.mu.Lock()
		if p.why != nil {
			reasons = append(reasons, fmt.Sprintf("%s: %v", id, p.why))
		}
		p.mu.Unlock()
	}
	slices.Sort(reasons)
	return strings.Join(reasons, "; ")
}

// outOfTouch tells whether this HSM may not know what the others do: no round with any of
// them has ended well for three, or its clock is off and it takes nothing new from them.
// Who is told looks at another HSM first, which costs little: it is told soon.
func (s *syncer) outOfTouch() bool {
	return !s.lately(max(3*time.Second, 3*s.interval)) || s.clockInTime() != nil
}

// watched returns the progress with every peer.
func (s *syncer) watched() map[hsm.HSMID]*progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[hsm.HSMID]*progress, len(s.shown))
	for id, p := range s.shown {
		out[id] = p
	}
	return out
}

// lately tells whether this HSM has heard from another one within d; or has
// none. Before it knows its members it has not.
func (s *syncer) lately(d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members == nil {
		return false
	}
	for _, p := range s.shown {
		if time.Since(p.numbers().synced) < d {
			return true
		}
	}
	return len(s.shown) == 0
}
