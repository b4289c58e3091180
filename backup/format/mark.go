package format

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// MarkVersion is the version of a mark's body. Version 1 had no check and is still
// read.
const MarkVersion = 2

// Action is what a mark says about snapshots.
type Action uint64

// The actions. The newest mark of each pair that names a snapshot decides.
const (
	ActionKeep     Action = 1 // the snapshot never expires
	ActionNoKeep   Action = 2 // it expires again, as the policy says
	ActionDelete   Action = 3 // it is pending deletion
	ActionUndelete Action = 4 // it is ready again
	ActionRemove   Action = 5 // its manifest is being removed: for ever
	ActionSweep    Action = 6 // objects that no manifest needs are being removed
)

var actionNames = map[Action]string{
	ActionKeep: "keep", ActionNoKeep: "no-keep", ActionDelete: "delete", ActionUndelete: "undelete", ActionRemove: "remove", ActionSweep: "sweep",
}

// String names the action.
func (a Action) String() string {
	if s, ok := actionNames[a]; ok {
		return s
	}
	return fmt.Sprintf("action %d", uint64(a))
}

// Mark is one entry of the log of retention.
type Mark struct {
	Number    uint64
	Written   time.Time // by the writer's clock; what counts is when the store took it
	Action    Action
	Snapshots []Marked // ascending by number; none for ActionSweep
	Reason    string
	Software  string
}

// Marked names a snapshot and its manifest.
type Marked struct {
	Sequence uint64
	Manifest Name
}

type markBody struct {
	Version   uint64       `cbor:"1,keyasint"`
	Number    uint64       `cbor:"2,keyasint"`
	Written   uint64       `cbor:"3,keyasint"`
	Action    uint64       `cbor:"4,keyasint"`
	Snapshots []markedBody `cbor:"5,keyasint,omitempty"`
	Reason    string       `cbor:"6,keyasint,omitempty"`
	Software  string       `cbor:"7,keyasint"`
	Check     []byte       `cbor:"8,keyasint,omitempty"`
}

func (b markBody) unchecked() markBody {
	b.Check = nil
	return b
}

type markedBody struct {
	_        struct{} `cbor:",toarray"`
	Sequence uint64
	Manifest []byte
}

// MarkPath returns where the mark of a number lies.
func MarkPath(number uint64) string { return MarkPrefix + ID(number) }

// ParseMarkPath reads the number out of a mark's path.
func ParseMarkPath(path string) (number uint64, ok bool) {
	s, ok := strings.CutPrefix(path, MarkPrefix)
	if !ok || len(s) != 10 {
		return 0, false
	}
	return ParseID(s)
}

// EncodeMark returns the stored bytes. ErrCorrupt if the mark breaks a rule that
// DecodeMark enforces.
func EncodeMark(m Mark) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b := m.body()
	var err error
	if b.Check, err = checkOf(b); err != nil {
		return nil, err
	}
	return encodeRecord(markHeader, b, MaxMark)
}

func (m Mark) body() markBody {
	b := markBody{Version: MarkVersion, Number: m.Number, Written: millis(m.Written), Action: uint64(m.Action), Reason: m.Reason, Software: m.Software}
	for _, s := range m.Snapshots {
		b.Snapshots = append(b.Snapshots, markedBody{Sequence: s.Sequence, Manifest: s.Manifest[:]})
	}
	return b
}

// DecodeMark reads stored bytes. ErrVersion, ErrCorrupt.
func DecodeMark(stored []byte) (Mark, error) {
	var b markBody
	if err := decodeRecord(stored, markHeader, "mark", MarkVersion, MaxMark, &b); err != nil {
		return Mark{}, err
	}
	if err := cmp.Or(verifyCheck("mark", b.Version, b.Check, b.unchecked()), checkMillis("mark", b.Written)); err != nil {
		return Mark{}, err
	}
	m := Mark{Number: b.Number, Written: fromMillis(b.Written), Action: Action(b.Action), Reason: b.Reason, Software: b.Software}
	for _, s := range b.Snapshots {
		if len(s.Manifest) != 32 {
			return Mark{}, fmt.Errorf("%w: mark: the name of a manifest has the wrong size", ErrCorrupt)
		}
		m.Snapshots = append(m.Snapshots, Marked{Sequence: s.Sequence, Manifest: Name(s.Manifest)})
	}
	return m, m.check()
}

func (m Mark) check() error {
	if m.Number == 0 || m.Number > MaxSequence {
		return fmt.Errorf("%w: mark: number %d", ErrCorrupt, m.Number)
	}
	if _, known := actionNames[m.Action]; !known {
		return fmt.Errorf("%w: mark: %s", ErrCorrupt, m.Action)
	}
	if (len(m.Snapshots) == 0) != (m.Action == ActionSweep) || len(m.Snapshots) > MaxMarked {
		return fmt.Errorf("%w: mark: %s names %d snapshots", ErrCorrupt, m.Action, len(m.Snapshots))
	}
	var last uint64
	for _, s := range m.Snapshots {
		if s.Sequence <= last || s.Sequence > MaxSequence {
			return fmt.Errorf("%w: mark: snapshot %d after %d", ErrCorrupt, s.Sequence, last)
		}
		last = s.Sequence
	}
	return checkRecordTexts("mark", m.Reason, m.Software)
}
