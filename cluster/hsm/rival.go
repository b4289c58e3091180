package hsm

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// MaxStanding bounds Record.Standing: nobody decides four billion times between
// births of one key, and a record that says so is refused.
const MaxStanding = 1 << 32

// Rival is what a record keeps of another birth under its reference, above which a
// person has set it: all but the key material, so that states of it that turn up
// later, and decisions made elsewhere at the same time, merge by the same laws as
// everything else.
type Rival struct {
	Standing, Incarnation uint64
	Destroyed             bool
	Core                  Core
	Registers             map[string]Register
}

// Equal tells whether two rivals of one birth are in the same state.
func (v *Rival) Equal(o *Rival) bool {
	return v.Standing == o.Standing && v.Incarnation == o.Incarnation && v.Destroyed == o.Destroyed && v.Core.equal(&o.Core) &&
		maps.EqualFunc(v.Registers, o.Registers, func(a, b Register) bool { return a.Stamp == b.Stamp && bytes.Equal(a.Value, b.Value) })
}

// Names tells whether the record is of this birth, or a person has set it above it.
func (r *Record) Names(birth [16]byte) bool {
	return r.Birth == birth || r.Rivals[birth] != nil
}

// Supersede returns the state in which one of the births that a and b know stands
// above all others of them, as a person has decided: the merger of both, which
// Merge refuses as long as nobody has. Its standing is one more than any before,
// so that the last decision counts wherever all are known. If a and b say so already
// it is their merger, so a repetition changes nothing.
//
// ErrInvalid if they are not of one key, or have been decided on too often;
// ErrNotFound if neither knows the birth; ErrConflict if what is to stand is live and
// its material is in neither.
func Supersede(a, b *Record, stands [16]byte) (*Record, error) {
	if a.Kind != KindKey || b.Kind != KindKey || a.Ref != b.Ref {
		return nil, fmt.Errorf("%w: decide between %s %s and %s %s: they are not one key reference", ErrInvalid, a.Kind, a.Ref, b.Kind, b.Ref)
	}
	all, err := gatherBirths(a, b)
	if err != nil {
		return nil, err
	}
	chosen, ok := all[stands]
	if !ok {
		return nil, fmt.Errorf("%w: key %s has no birth %x here", ErrNotFound, a.Ref, stands)
	}
	top := highest(all)
	if top != chosen || !a.Names(b.Birth) && !b.Names(a.Birth) {
		if chosen.record.Standing = top.record.Standing + 1; chosen.record.Standing > MaxStanding {
			return nil, fmt.Errorf("%w: the births of key %s have been decided on too often", ErrInvalid, a.Ref)
		}
	}
	return standing(all)
}

// birth is what is known of one birth while records are merged; its record has no
// rivals of its own. It carries what is sealed if a live record of it was among them,
// which here says no more than that it would: of clear parts nothing sealed is seen.
type birth struct {
	record  *Record
	carries bool
}

// mergeRivals merges records of which one names the other's birth: every birth with
// itself, and then the one with the highest standing stands, whole, above the rest.
func mergeRivals(a, b *Record) (*Record, error) {
	all, err := gatherBirths(a, b)
	if err != nil {
		return nil, err
	}
	return standing(all)
}

// gatherBirths merges what two records know, birth by birth.
func gatherBirths(records ...*Record) (map[[16]byte]*birth, error) {
	all := map[[16]byte]*birth{}
	for _, r := range records {
		own := r.Clone()
		own.Rivals = nil
		if err := addBirth(all, &birth{record: own, carries: !own.Destroyed}); err != nil {
			return nil, err
		}
		for id, rival := range r.Rivals {
			if err := addBirth(all, &birth{record: r.rival(id, rival)}); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// rival makes a record of what r keeps of another birth; it shares nothing with r.
func (r *Record) rival(id [16]byte, v *Rival) *Record {
	return (&Record{
		Kind: r.Kind, Ref: r.Ref, Cluster: r.Cluster, Birth: id, Standing: v.Standing,
		Incarnation: v.Incarnation, Destroyed: v.Destroyed, Core: v.Core, Registers: v.Registers,
	}).Clone()
}

func addBirth(all map[[16]byte]*birth, b *birth) error {
	known := all[b.record.Birth]
	if known == nil {
		all[b.record.Birth] = b
		return nil
	}
	merged, err := known.merge(b)
	if err == nil {
		all[b.record.Birth] = merged
	}
	return err
}

// merge is Merge for one birth, of which either side may lack the material.
func (b *birth) merge(o *birth) (*birth, error) {
	x, y := b.record, o.record
	same := compareState(x, y) != 0 || x.Core.equal(&y.Core) && (!b.carries || !o.carries || x.Material.Equal(y.Material))
	if !same {
		return nil, conflict(x)
	}
	m := mergeOneBirth(x, y)
	m.Standing = max(x.Standing, y.Standing)
	if !m.Destroyed && m.Material.Len() == 0 { // one birth, one material, in whatever life
		if m.Material = x.Material.clone(); m.Material.Len() == 0 {
			m.Material = y.Material.clone()
		}
	}
	return &birth{record: m, carries: b.carries || o.carries}, nil
}

// highest returns the birth that stands: that of the highest standing, and of two
// persons who decided differently at the same time, that of the larger birth.
func highest(all map[[16]byte]*birth) (top *birth) {
	for _, b := range all {
		if top == nil || standsAbove(b.record.Standing, b.record.Birth, top.record.Standing, top.record.Birth) {
			top = b
		}
	}
	return top
}

func standsAbove(a uint64, birthA [16]byte, b uint64, birthB [16]byte) bool {
	return cmp.Or(cmp.Compare(a, b), bytes.Compare(birthA[:], birthB[:])) > 0
}

// standing makes the record of the highest birth, with the others as its rivals.
func standing(all map[[16]byte]*birth) (*Record, error) {
	top := highest(all)
	r := top.record
	// A record's birth is the highest that it knows, so one of those merged is of this
	// birth; but it may be destroyed there, and revived where another one stands.
	if !r.Destroyed && !top.carries {
		return nil, fmt.Errorf("%w: key %s: the birth that stands was revived where another one stood, and its material is in neither", ErrConflict, r.Ref)
	}
	for id, b := range all {
		if b == top {
			continue
		}
		if r.Rivals == nil {
			r.Rivals = make(map[[16]byte]*Rival, len(all)-1)
		}
		v := b.record
		r.Rivals[id] = &Rival{Standing: v.Standing, Incarnation: v.Incarnation, Destroyed: v.Destroyed, Core: v.Core, Registers: v.Registers}
	}
	return r, nil
}

func cloneRivals(m map[[16]byte]*Rival) map[[16]byte]*Rival {
	if m == nil {
		return nil
	}
	c := make(map[[16]byte]*Rival, len(m))
	for id, v := range m {
		w := *v
		w.Core.Public, w.Core.Check = bytes.Clone(v.Core.Public), bytes.Clone(v.Core.Check)
		w.Registers = cloneRegisters(v.Registers)
		c[id] = &w
	}
	return c
}

// checkRivals tells why a record's standing and rivals are none that HSMs make.
func (r *Record) checkRivals() error {
	if (r.Standing > 0) != (len(r.Rivals) > 0) || r.Standing > MaxStanding {
		return fmt.Errorf("its standing is %d above %d rivals", r.Standing, len(r.Rivals))
	}
	if len(r.Rivals) > 0 && r.Kind != KindKey {
		return errors.New("only keys have rivals")
	}
	for id, v := range r.Rivals {
		if !standsAbove(r.Standing, r.Birth, v.Standing, id) { // equal only if it names itself
			return errors.New("a rival stands above it")
		}
		if err := r.rival(id, v).checkState(); err != nil {
			return fmt.Errorf("a rival: %w", err)
		}
	}
	return nil
}

// Keys of a rival (FORMAT.md §4).
const (
	rivalStanding    = 1
	rivalIncarnation = 2
	rivalDestroyed   = 3
	rivalCore        = 4
	rivalRegisters   = 5
)

// rivals writes a map of births to rivals, ascending by birth.
func (w *fieldWriter) rivals(k byte, m map[[16]byte]*Rival) {
	if len(m) == 0 {
		return
	}
	w.key(k)
	w.b = appendHead(w.b, cborMap, uint64(len(m)))
	ids := slices.SortedFunc(maps.Keys(m), func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		v := m[id]
		one := writeFields(appendBytes(w.b, id[:]))
		one.uint(rivalStanding, v.Standing)
		one.uint(rivalIncarnation, v.Incarnation)
		one.flag(rivalDestroyed, v.Destroyed)
		one.key(rivalCore)
		one.b = appendCore(one.b, &v.Core)
		one.registers(rivalRegisters, v.Registers)
		w.b = one.b
	}
}

// rivals reads a map of rivals that would have been left out were it empty.
func (r *reader) rivals() map[[16]byte]*Rival {
	n := r.head(cborMap)
	if n == 0 || n > uint64(len(r.b)-r.at) {
		r.fail()
		return nil
	}
	m := make(map[[16]byte]*Rival, min(n, 16))
	var last [16]byte
	for i := uint64(0); i < n && !r.bad; i++ {
		id := [16]byte(r.fixed(16))
		if i > 0 && bytes.Compare(id[:], last[:]) <= 0 {
			r.fail()
			return m
		}
		last, m[id] = id, r.rival()
	}
	return m
}

func (r *reader) rival() *Rival {
	v := &Rival{Registers: map[string]Register{}}
	seen := r.fields(func(key uint64) {
		switch key {
		case rivalStanding:
			v.Standing = r.count()
		case rivalIncarnation:
			v.Incarnation = r.count()
		case rivalDestroyed:
			v.Destroyed = r.flag()
		case rivalCore:
			r.fields(func(key uint64) { v.Core.decodeField(r, key) })
		case rivalRegisters:
			v.Registers = r.registers()
		default:
			r.fail()
		}
	})
	if seen&(1<<rivalCore) == 0 {
		r.fail()
	}
	return v
}
