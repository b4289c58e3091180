package soft

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// An object store that was set back to an older state (an old image of the disk,
// an old copy of the folder) looks as whole as any. Its peers can tell: they
// remember which start of the HSM they last heard of, and how far it was. So each
// start draws a random id, and the store keeps the ids of the last ones, with the
// sequence number that each had come to when the next one began. A peer that
// remembers a start which is not among them, or one that had come further, knows
// that the store is older than what it has seen.
//
// Sequence numbers are pebble's: they grow with every write and are as durable as
// what was written.

// BootID names one start; it is random.
type BootID [16]byte

// Boot is one start, and how far the store had come when it ended. Of the start
// that runs, how far it was after the last durable change.
type Boot struct {
	ID     BootID
	Writes uint64
}

const (
	maxBoots = 64 // earlier starts that are kept
	bootSize = 16 + 8
)

// beginBoot begins a start. It is durable before the HSM answers anybody: if we die
// before that, nobody has heard of it.
func (h *HSM) beginBoot() error {
	b, err := get(h.store.db, []byte{prefixBoots})
	if err != nil {
		return h.store.wrap("open", err)
	}
	before, err := parseBoots(b)
	if err != nil {
		return h.lost("its starts do not decode")
	}
	probe := h.store.db.NewBatch()
	defer probe.Close()
	if err := probe.Set([]byte{prefixBoots}, b, nil); err != nil {
		return h.store.wrap("open", err)
	}
	if err := probe.Commit(pebble.NoSync); err != nil {
		return h.store.wrap("open", err)
	}
	if len(before) > 0 {
		before[0].Writes = uint64(probe.SeqNum()) - 1
	}
	h.before = before
	rand.Read(h.boot[:])
	row := append(encodeBoot(nil, Boot{ID: h.boot}), encodeBoots(before[:min(len(before), maxBoots-1)])...)
	h.writes.Store(uint64(probe.SeqNum()))
	return h.store.wrap("open", h.store.db.Set([]byte{prefixBoots}, row, pebble.Sync))
}

func encodeBoot(b []byte, boot Boot) []byte {
	return binary.BigEndian.AppendUint64(append(b, boot.ID[:]...), boot.Writes)
}

func encodeBoots(boots []Boot) (b []byte) {
	for _, boot := range boots {
		b = encodeBoot(b, boot)
	}
	return b
}

func parseBoots(b []byte) (boots []Boot, err error) {
	if len(b)%bootSize != 0 || len(b) > maxBoots*bootSize {
		return nil, fmt.Errorf("%w: %d bytes of starts", hsm.ErrCorrupt, len(b))
	}
	for ; len(b) > 0; b = b[bootSize:] {
		boots = append(boots, Boot{ID: BootID(b[:16]), Writes: binary.BigEndian.Uint64(b[16:])})
	}
	return boots, nil
}

// wrote takes note of a durable change.
func (h *HSM) wrote(batch *pebble.Batch) {
	last := uint64(batch.SeqNum()) + uint64(batch.Count()) - 1
	for {
		was := h.writes.Load()
		if last <= was || h.writes.CompareAndSwap(was, last) {
			return
		}
	}
}

// Boots returns this start, and those before it, the latest first.
func (h *HSM) Boots() (now Boot, before []Boot) {
	return Boot{ID: h.boot, Writes: h.writes.Load()}, h.before
}

func seenKey(id hsm.HSMID) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixSeen}, uint64(id))
}

// Seen returns what was last remembered of another HSM; ok is false if nothing was.
func (h *HSM) Seen(id hsm.HSMID) (seen Boot, ok bool, err error) {
	b, err := get(h.store.db, seenKey(id))
	if b == nil || err != nil {
		return Boot{}, false, h.store.wrap("read", err)
	}
	boots, err := parseBoots(b)
	if err != nil || len(boots) != 1 {
		return Boot{}, false, h.damaged(0, fmt.Errorf("%w: what was seen of %s", hsm.ErrCorrupt, id))
	}
	return boots[0], true, nil
}

// See remembers another HSM. It survives the end of this process at once, and a
// loss of power with the next change: what is forgotten then can only be a few
// moments old.
func (h *HSM) See(id hsm.HSMID, seen Boot) error {
	if err := h.store.check(); err != nil {
		return err
	}
	return h.store.wrap("write", h.store.db.Set(seenKey(id), encodeBoot(nil, seen), pebble.NoSync))
}
