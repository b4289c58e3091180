package sim

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"
	"time"
)

// trace is everything that happened, in order, with the virtual time. What
// happens at one instant has no order: it is hashed sorted.
type trace struct {
	began time.Time

	mu      sync.Mutex
	at      time.Duration
	instant []string // of the present instant
	lines   []string
	hash    hash.Hash
}

func newTrace() *trace { return &trace{began: time.Now(), hash: sha256.New()} }

func (t *trace) now() time.Duration { return time.Since(t.began) }

func (t *trace) add(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.now(); now != t.at {
		t.flush()
		t.at = now
	}
	t.instant = append(t.instant, line)
}

// flush ends an instant. t.mu is held.
func (t *trace) flush() {
	slices.Sort(t.instant)
	for _, l := range t.instant {
		line := fmt.Sprintf("%12.9f %s", t.at.Seconds(), l)
		t.hash.Write([]byte(line + "\n"))
		t.lines = append(t.lines, line)
	}
	t.instant = nil
}

// sum is the fingerprint of the trace.
func (t *trace) sum() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flush()
	return hex.EncodeToString(t.hash.Sum(nil)[:16])
}

// tail returns the last lines.
func (t *trace) tail(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flush()
	return strings.Join(t.lines[max(0, len(t.lines)-n):], "\n")
}
