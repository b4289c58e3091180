package synckey

import (
	"maps"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Status is how a watch fares. Its JSON is the report of a watch.
type Status struct {
	Looks   int `json:"looks"` // since the watch began
	Plans   int `json:"plans"` // looks that found something to look into
	Applied int `json:"applied"`
	// Failures are looks that failed, Refusals those whose plan a rule refused.
	Failures    int   `json:"failures"`
	Refusals    int   `json:"refusals"`
	SketchBytes int64 `json:"sketch_bytes"`
	ObjectBytes int64 `json:"object_bytes"`
	// Differences counts by class what differed in the last look, before anything
	// of it was applied; Left what was not to be applied.
	Differences map[string]int `json:"differences"`
	Left        int            `json:"left"`
	Level       bool           `json:"roots_equal"`      // all HSMs of both clusters that answered held the same
	Success     time.Time      `json:"success,omitzero"` // when a look last found nothing left to do, or had done it
	Failing     error          `json:"-"`                // why the last look failed; nil if it did not
	SrcAway     []hsm.HSMID    `json:"src_away,omitempty"`
	DstAway     []hsm.HSMID    `json:"dst_away,omitempty"`
	// Lags are of the latest objects that were applied: from the first sight of a
	// difference until it was durable. Behind is how long the oldest one waits.
	LagP50 Seconds `json:"lag_p50_seconds"`
	LagP99 Seconds `json:"lag_p99_seconds"`
	LagMax Seconds `json:"lag_max_seconds"`
	Behind Seconds `json:"behind_seconds"`
}

// Seconds is a duration that JSON shows as a number of seconds.
type Seconds float64

// Status returns how the watch fares now.
func (w *Watch) Status() Status {
	w.mu.Lock()
	s := w.status
	s.Differences = maps.Clone(s.Differences)
	w.mu.Unlock()
	q := w.lags.quantiles(.5, .99, 1)
	s.LagP50, s.LagP99, s.LagMax = Seconds(q[0].Seconds()), Seconds(q[1].Seconds()), Seconds(q[2].Seconds())
	s.Behind = Seconds(w.lags.behind(time.Now()).Seconds())
	return s
}

func (w *Watch) update(f func(*Status)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.status)
}

// level notes that nothing differs; r is the plan that found so, if it took one.
func (w *Watch) level(r *Result) {
	w.done = ""
	w.lags.none()
	was := false
	w.update(func(s *Status) {
		was, s.Level, s.Left, s.Success = s.Level, true, 0, time.Now()
		s.Differences = (&Result{}).byClass()
	})
	if !was {
		w.events.emit(Event{Kind: EventLevel, Result: r})
	}
	w.events.unchanged = ""
}

// still notes that what differs is what differed when nothing was left to do. A
// plan that was refused stays refused.
func (w *Watch) still() error {
	if err := w.events.refusal; err != nil {
		return err
	}
	w.update(func(s *Status) { s.Success = time.Now() })
	return nil
}

// found notes what a plan found.
func (w *Watch) found(p *Plan) {
	r := p.Result
	w.update(func(s *Status) {
		s.Plans++
		s.SketchBytes += r.SketchBytes
		s.Level, s.Left = p.found.equal, len(r.Left)
		s.Differences = r.byClass()
	})
}

// byClass counts what differs by class, also what does not occur.
func (r *Result) byClass() map[string]int {
	return map[string]int{
		classNew.String(): r.Missing, classChanged.String(): r.Changed, classDestroyed.String(): r.DestroyedAtSrc, classDestroyedDst.String(): r.DestroyedAtDst,
		classOnlyDst.String(): r.OnlyAtDst, "tombstone": r.Tombstones, classSettling.String(): r.Settling, "outside the filter": r.Outside,
		"user or policy": r.Users, classConflict.String(): len(r.Conflicts),
	}
}

// applied notes what became of a plan.
func (w *Watch) applied(r *Result, err error) {
	w.update(func(s *Status) {
		s.Applied += r.Applied
		s.ObjectBytes += r.ObjectBytes
		if err == nil {
			s.Success = time.Now()
		}
	})
}

// away notes which HSMs do not answer.
func (w *Watch) away(src, dst []hsm.HSMID) {
	changed := false
	w.update(func(s *Status) {
		changed = !slices.Equal(s.SrcAway, src) || !slices.Equal(s.DstAway, dst)
		s.SrcAway, s.DstAway = src, dst
	})
	if changed {
		w.events.emit(Event{Kind: EventAway, SrcAway: src, DstAway: dst})
	}
}

// note notes how a look ended.
func (w *Watch) note(err error) {
	w.update(func(s *Status) {
		s.Looks++
		s.Failing = err
		switch {
		case refused(err):
			s.Refusals++
		case err != nil:
			s.Failures++
		}
	})
	if err != nil && !refused(err) {
		w.a, w.b = nil, nil // whoever answers next time is challenged
	}
	w.events.ended(err, w.wait)
}
