package server

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAClockThatIsOffMakesUnready: minutes ahead or behind, the HSM says that it is, by how
// much and what follows, and the others stay ready. The one that is behind takes nothing
// new from the others: it says that it is out of touch, and why, until its clock is right.
func TestAClockThatIsOffMakesUnready(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		off  time.Duration
		says string
	}{
		{-10 * time.Minute, "10m0s behind the others': it refuses what they make"},
		{10 * time.Minute, "10m0s ahead of the others': they refuse what it makes"},
	} {
		t.Run(tc.off.String(), func(t *testing.T) {
			w := newWatchedWorld(t, 3)
			w.createAlice()
			one, odd := w.boxes[0], w.boxes[2]
			w.rounds()
			if err := odd.stop(); err != nil {
				t.Fatal(err)
			}
			var shift atomic.Int64
			shift.Store(int64(tc.off))
			odd.watchedAt(func() time.Time { return time.Now().Add(time.Duration(shift.Load())) })
			w.createKey(one.alice(), "new")
			w.eventually("the clock does not show", func() bool {
				ok, checks := odd.ready()
				return !ok && strings.Contains(checks["clock"], tc.says)
			})
			odd.becomes(func(v float64) bool { return (time.Duration(v)*time.Second - tc.off).Abs() < time.Minute }, "hsmbackup_clock_ahead_seconds")
			one.becomes(func(v float64) bool { return time.Duration(v)*time.Second < time.Minute }, "hsmbackup_clock_ahead_seconds")
			w.eventually("another HSM is not ready", func() bool { ok, checks := one.ready(); return ok && checks["clock"] == "ok" })
			if tc.off > 0 {
				return
			}
			alice := odd.alice()
			w.eventually("it does not say that it is out of touch", func() bool {
				info, err := alice.Info(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				_, checks := odd.ready()
				return info.OutOfTouch && strings.Contains(checks["sync"], one.id().String()+": ") && strings.Contains(checks["sync"], hsm.ErrFuture.Error())
			})
			shift.Store(0)
			w.eventually("it does not come back", func() bool { ok, _ := odd.ready(); return ok })
		})
	}
}

// TestOfTwoClocksNoneMakesBothUnready: nobody knows which of two is off. The HSM that refuses
// what the other one makes is not in sync, and says why; the other one stays ready.
func TestOfTwoClocksNoneMakesBothUnready(t *testing.T) {
	t.Parallel()
	w := newWatchedWorld(t, 2)
	w.createAlice()
	ahead, behind := w.boxes[0], w.boxes[1]
	w.rounds()
	if err := behind.stop(); err != nil {
		t.Fatal(err)
	}
	behind.watchedAt(func() time.Time { return time.Now().Add(-10 * time.Minute) })
	w.createKey(ahead.alice(), "new")
	ahead.becomes(func(v float64) bool { return v > 500 }, "hsmbackup_clock_ahead_seconds")
	w.eventually("it does not say that it refuses what the other one makes", func() bool {
		ok, checks := behind.ready()
		return !ok && strings.Contains(checks["sync"], hsm.ErrFuture.Error())
	})
	if ok, checks := ahead.ready(); !ok {
		t.Errorf("both are unready: %v", checks)
	}
}
