package soft

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// An HSM's clock is past every stamp that it has written, and whoever is about to make
// a change asks for it, so as to be later than what was acknowledged. A stamp may be
// minutes ahead of the time of day, since clocks of HSMs differ; so the clock must not
// fall back to the time of day when the HSM is started again. The store keeps a time
// that no stamp in it is later than, in whole seconds, as the key of an empty row: it
// is written in the same step as the first stamp beyond the one before, whatever the
// order in which steps that are under way at once become durable.
//
// If we die before such a step is durable, neither its stamps nor the row are there;
// after it, both are.

// latestStep is the unit in which the time is kept, in that of stamps.
const latestStep = uint64(time.Second/time.Millisecond) << 16

// latest is the largest time that is durable; 0: none.
type latest struct{ at atomic.Uint64 }

func latestKey(at uint64) []byte { return binary.BigEndian.AppendUint64([]byte{prefixLatest}, at) }

// keepLatest adds to a step what it takes so that the clock does not fall behind its
// stamps. The caller calls keptLatest with the result once the step is durable.
func (t *tx) keepLatest() (at uint64) {
	was := t.h.latest.at.Load()
	if at = t.h.clock.Latest(); at <= was {
		return 0
	}
	at = (at/latestStep + 1) * latestStep
	t.set(latestKey(at), nil)
	if was != 0 {
		t.delete(latestKey(was)) // a larger one is written in the same step
	}
	return at
}

// rememberLatest is keepLatest for objects that the store takes over without a step.
func (h *HSM) rememberLatest() error {
	at := (h.clock.Latest()/latestStep + 1) * latestStep
	err := h.store.guard(func() error { return h.store.db.Set(latestKey(at), nil, pebble.Sync) })
	if err == nil {
		h.keptLatest(at)
	}
	return err
}

func (h *HSM) keptLatest(at uint64) {
	for {
		was := h.latest.at.Load()
		if at <= was || h.latest.at.CompareAndSwap(was, at) {
			return
		}
	}
}

// loadLatest sets the clock to where it was when the HSM was last open, and tidies up.
// A time that is too far ahead of the time of day, which was set back meanwhile, is left
// for when that is right again: an HSM that stamped by it would be refused by all.
func (h *HSM) loadLatest() error {
	var rows []uint64
	err := scan(h.store.db, []byte{prefixLatest}, func(key, _ []byte) (bool, error) {
		at, err := refOf(key) // 8 bytes too
		rows = append(rows, uint64(at))
		return true, err
	})
	if err != nil {
		return h.store.wrap("open", err)
	}
	for _, at := range rows {
		if h.clock.Observe(hsm.Stamp{Time: at}) == nil {
			h.latest.at.Store(at)
		}
	}
	for _, at := range rows {
		if at < h.latest.at.Load() {
			if err := h.store.db.Delete(latestKey(at), pebble.NoSync); err != nil {
				return h.store.wrap("open", err)
			}
		}
	}
	return nil
}
