package synckey

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Rate bounds what is inserted, objects or bytes of masked objects in a second,
// in both directions together. The zero Rate does not.
type Rate struct {
	text    string
	objects float64
	bytes   float64
}

// units are those of ParseRate, the longest ending first.
var units = []struct {
	name string
	size float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1},
}

// ParseRate reads a rate: objects, as in 500/s, or bytes, as in 10MB/s. Less
// than one of them a second is written as 0.5/s. hsm.ErrInvalid if it is neither.
func ParseRate(s string) (Rate, error) {
	invalid := fmt.Errorf("%w: rate %q: want objects or bytes a second, such as 500/s or 10MB/s", hsm.ErrInvalid, s)
	number, ok := strings.CutSuffix(s, "/s")
	if !ok {
		return Rate{}, invalid
	}
	size := 0.0
	for _, u := range units {
		if cut, ok := strings.CutSuffix(number, u.name); ok {
			number, size = strings.TrimSpace(cut), u.size
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n > 0) || math.IsInf(n*max(size, 1), 0) {
		return Rate{}, invalid
	}
	if size > 0 {
		return Rate{text: s, bytes: n * size}, nil
	}
	return Rate{text: s, objects: n}, nil
}

// String returns the rate as ParseRate reads it; nothing for the zero Rate.
func (r Rate) String() string { return r.text }

// MarshalText makes of a rate the string it was read from.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.text), nil }

// takes is how long a rate makes so much last.
func (r Rate) takes(objects int, bytes int64) time.Duration {
	seconds := 0.0
	switch {
	case r.objects > 0:
		seconds = float64(objects) / r.objects
	case r.bytes > 0:
		seconds = float64(bytes) / r.bytes
	}
	return time.Duration(min(seconds, float64(maxPause/time.Second)) * float64(time.Second))
}

// maxPause bounds one pause, for rates that would never let an object through.
const maxPause = 24 * time.Hour

// slice is how long an insertion lasts at the rate: what is sent at a time is
// what may be sent in that time, or one object.
const slice = time.Second / 4

// Bounds of what is sent at a time, for want of a rate. The client sends as many
// objects at a time anyway.
const (
	sliceObjects = 256
	sliceBytes   = 4 << 20
)

// full tells whether so much is to be sent before more is read.
func (r Rate) full(objects int, bytes int64) bool {
	return objects >= sliceObjects || bytes >= sliceBytes || (r != Rate{} && r.takes(objects, bytes) >= slice)
}

// pacer spaces insertions. What was not used is not saved up: after a pause
// nothing is sent faster.
type pacer struct {
	rate  Rate
	free  time.Time // when the next insertion may begin
	now   func() time.Time
	sleep func(context.Context, time.Duration) error
}

func newPacer(r Rate) *pacer { return &pacer{rate: r, now: time.Now, sleep: sleep} }

// next waits until so much may be sent.
func (p *pacer) next(ctx context.Context, objects int, bytes int64) error {
	if (p.rate == Rate{}) {
		return ctx.Err()
	}
	now := p.now()
	if d := p.free.Sub(now); d > 0 {
		if err := p.sleep(ctx, d); err != nil {
			return err
		}
		now = p.free
	}
	p.free = now.Add(p.rate.takes(objects, bytes))
	return ctx.Err()
}

// sleep waits, or returns the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
