package synckey

import (
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// phase orders the insertions: users before the keys that need them, deletions
// of users after the destruction of their keys, and policies last, so that the
// durability policy that holds when a plan begins holds to its end.
type phase int

const (
	phaseUsers phase = iota
	phaseGraves
	phaseKeys
	phaseLeavers
	phasePolicies
	phases
)

// steps are the insertions of one direction, 8 bytes each; what they insert is
// kept while there is room, and fetched again otherwise.
type steps struct {
	refs [phases][]hsm.KeyRef
	kept map[hsm.KeyRef][]hsm.MaskedObject
	room *int // left of maxHeld, shared by both directions
	// stands tells, of keys that stand above other births, which the plan showed.
	stands map[hsm.KeyRef][16]byte
}

func newSteps(room *int) *steps {
	return &steps{kept: map[hsm.KeyRef][]hsm.MaskedObject{}, stands: map[hsm.KeyRef][16]byte{}, room: room}
}

func (s *steps) add(p phase, ref hsm.KeyRef, h *held) {
	s.refs[p] = append(s.refs[p], ref)
	if h.record.Standing > 0 {
		s.stands[ref] = h.record.Birth
	}
	if n := h.size(); n <= *s.room {
		*s.room -= n
		s.kept[ref] = h.masked
	}
}

// shown tells whether what is read again stands above no other birth than in the
// plan: otherwise it would end a key that nobody was shown.
func (s *steps) shown(ref hsm.KeyRef, r *hsm.Record) bool {
	return r.Standing == 0 || s.stands[ref] == r.Birth
}

func (s *steps) len() (n int64) {
	for _, refs := range s.refs {
		n += int64(len(refs))
	}
	return n
}
