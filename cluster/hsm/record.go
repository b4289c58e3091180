package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Record is an unmasked object: the state that replicas merge. Its maps and
// slices are not shared with the record it was merged or decoded from.
type Record struct {
	Kind    Kind
	Ref     KeyRef
	Cluster ClusterID // members and lockouts only, otherwise 0
	// Birth fingerprints the immutable part, key material included, under the
	// lineage's secret. Two births under one reference are a conflict.
	Birth       [16]byte
	Incarnation uint64 // raised only when an operator revives a destroyed object
	Destroyed   bool
	Core        Core                // of a tombstone: only Owner remains
	Registers   map[string]Register // in clear in the masked object
	Hidden      map[string]Register // sealed: a user's password verifier
	Material    Secret              // sealed: key material
	// Standing and Rivals are there once a person has decided between two births
	// under the reference: Rivals are the births that this one stands above.
	Standing uint64
	Rivals   map[[16]byte]*Rival
}

// Core is what never changes after birth.
type Core struct {
	Class   Class
	Type    string
	Size    int
	Curve   string
	Origin  Method // generate, import, unwrap, derive
	Created Stamp
	Owner   string // crypto user; or the name of a user, policy or member
	Public  []byte // SPKI DER of an asymmetric key
	Check   []byte // key check value, 3 bytes or none
	Pair    KeyRef // other half of a key pair, or 0
	// SensitiveAtBirth and ExtractableAtBirth decide always-sensitive and
	// never-extractable, since both attributes change one way only.
	SensitiveAtBirth, ExtractableAtBirth bool
}

// Register is a mutable field: the later stamp wins.
type Register struct {
	Stamp Stamp
	Value []byte
}

// Bool reads the register as a flag.
func (r Register) Bool() bool { return len(r.Value) == 1 && r.Value[0] == 1 }

// BoolValue encodes a flag.
func BoolValue(v bool) []byte {
	if v {
		return []byte{1}
	}
	return []byte{0}
}

// The register namespaces.
const (
	attrPrefix  = "attr/"  // attr/NAME: a key attribute
	sharePrefix = "share/" // share/USER: shared with USER

	registerTrusted = attrPrefix + "trusted"
	registerLabel   = attrPrefix + "label"
	registerPrivate = attrPrefix + "private"
)

var sharePrefixBytes = []byte(sharePrefix)

// The registers of a member that change one way only.
const (
	RegisterRemoved = "removed"
	RegisterJoining = "joining"
)

// Registers without a value, whose stamp says when.
const (
	// RegisterCreated, of a user: when this incarnation was made.
	RegisterCreated = "created"
	// RegisterOwned, of a key: since when its owner has it, if that is not its creation:
	// an admin has revived it for a later user of the name.
	RegisterOwned = "owned"
)

// OwnedSince tells whether a live key belongs to the user of its owner's name who was
// made then, and not to an earlier one.
func (r *Record) OwnedSince(created Stamp) bool {
	return r.Core.Created.Compare(created) >= 0 || r.Registers[RegisterOwned].Stamp.Compare(created) >= 0
}

// AttributeRegister names the register of a key attribute.
func AttributeRegister(name string) string {
	if i, ok := attributesByName[name]; ok {
		return attributeRegisters[i]
	}
	return attrPrefix + name
}

// ShareRegister names the register that tells whether a key is shared with user.
func ShareRegister(user string) string { return sharePrefix + user }

// oneWay maps the registers that change one way only to the value that wins
// whatever the clock says (PKCS #11 v2.40 §4.4, cloudhsm.md §2.4).
var oneWay = map[string]bool{
	attrPrefix + "extractable":       false,
	attrPrefix + "sensitive":         true,
	attrPrefix + "wrap-with-trusted": true,
	attrPrefix + "modifiable":        false,
	attrPrefix + "copyable":          false,
	// A member that was removed stays so, and one that has joined does not join
	// again, whatever an older state that comes late says.
	RegisterRemoved: true,
	RegisterJoining: false,
}

// Merge returns the state that knows all that a and b know. It is commutative,
// associative and idempotent (TestMergeLaws), so replicas converge whatever the
// order in which they hear of each other. ErrConflict if a and b are different
// things under one reference, or different births and neither names the other; if
// one does, a person has decided, and the higher one stands: see Supersede. The
// result shares nothing with a and b, and neither is changed.
func Merge(a, b *Record) (*Record, error) {
	if a.Kind != b.Kind || a.Ref != b.Ref || a.Cluster != b.Cluster || !a.Names(b.Birth) && !b.Names(a.Birth) {
		return nil, conflict(a)
	}
	if len(a.Rivals)+len(b.Rivals) > 0 {
		return mergeRivals(a, b)
	}
	if !sameThing(a, b) {
		return nil, conflict(a)
	}
	return mergeOneBirth(a, b), nil
}

func conflict(r *Record) error {
	return fmt.Errorf("%w: %s %s was born twice; compare both with key show, and decide with synckey resolve", ErrConflict, r.Kind, r.Ref)
}

// mergeOneBirth merges two states of one birth.
func mergeOneBirth(a, b *Record) *Record {
	if c := compareState(a, b); c != 0 {
		later, earlier := a, b
		if c < 0 {
			later, earlier = b, a
		}
		m := later.Clone()
		mergeRegisters(m.Registers, earlier.lasting())
		return m
	}
	m := a.Clone()
	mergeRegisters(m.Registers, b.Registers)
	mergeRegisters(m.Hidden, b.Hidden)
	return m
}

// sameThing tells whether what never changes is the same in two records of one
// state. Equal births say so already when every HSM computes births as it
// must; were one to err, this keeps the material of neither from being lost.
func sameThing(a, b *Record) bool {
	return compareState(a, b) != 0 || a.Core.equal(&b.Core) && a.Material.Equal(b.Material)
}

func (c *Core) equal(o *Core) bool {
	return c.Class == o.Class && c.Type == o.Type && c.Size == o.Size && c.Curve == o.Curve && c.Origin == o.Origin &&
		c.Created == o.Created && c.Owner == o.Owner && bytes.Equal(c.Public, o.Public) && bytes.Equal(c.Check, o.Check) &&
		c.Pair == o.Pair && c.SensitiveAtBirth == o.SensitiveAtBirth && c.ExtractableAtBirth == o.ExtractableAtBirth
}

// compareState orders by incarnation, destroyed above live.
func compareState(a, b *Record) int {
	switch {
	case a.Incarnation != b.Incarnation:
		if a.Incarnation > b.Incarnation {
			return 1
		}
		return -1
	case a.Destroyed == b.Destroyed:
		return 0
	case a.Destroyed:
		return 1
	}
	return -1
}

func mergeRegisters(into, from map[string]Register) {
	for name, theirs := range from {
		if ours, ok := into[name]; !ok || registerWins(name, theirs, ours) {
			into[name] = Register{Stamp: theirs.Stamp, Value: slices.Clone(theirs.Value)}
		}
	}
}

// registerWins tells whether x beats y: the one-way value first, then the
// later stamp, then the larger bytes, so that the order is total.
func registerWins(name string, x, y Register) bool {
	if winner, ok := oneWay[name]; ok && x.Bool() != y.Bool() {
		return x.Bool() == winner
	}
	if c := x.Stamp.Compare(y.Stamp); c != 0 {
		return c > 0
	}
	return bytes.Compare(x.Value, y.Value) > 0
}

// Set writes a register with a fresh stamp. The record keeps value.
func (r *Record) Set(name string, value []byte, at Stamp) {
	if r.Registers == nil {
		r.Registers = map[string]Register{}
	}
	r.Registers[name] = Register{Stamp: at, Value: value}
}

// Clone copies the record, its bytes included, so that wiping the material of
// one leaves the other whole.
func (r *Record) Clone() *Record {
	c := *r
	c.Core.Public, c.Core.Check = bytes.Clone(r.Core.Public), bytes.Clone(r.Core.Check)
	c.Registers, c.Hidden = cloneRegisters(r.Registers), cloneRegisters(r.Hidden)
	c.Material, c.Rivals = r.Material.clone(), cloneRivals(r.Rivals)
	return &c
}

// cloneRegisters copies registers and their values, the latter into one
// buffer.
func cloneRegisters(m map[string]Register) map[string]Register {
	c, size := make(map[string]Register, len(m)), 0
	for _, reg := range m {
		size += len(reg.Value)
	}
	buf := make([]byte, 0, size)
	for name, reg := range m {
		at := len(buf)
		buf = append(buf, reg.Value...)
		c[name] = Register{Stamp: reg.Stamp, Value: buf[at:len(buf):len(buf)]}
	}
	return c
}

// Destroy turns the record into its tombstone: material, registers and all of
// the core but the owner are erased. What stays is the same on whichever HSM
// the destruction happens; of a key, also what no later life may forget: the
// one-way attributes that have gone their way, and its trust. Its rivals stay,
// too: they are not to come back.
func (r *Record) Destroy() {
	r.Registers, r.Hidden, r.Material = r.lasting(), map[string]Register{}, Secret{}
	r.Destroyed = true
	r.Core = Core{Owner: r.Core.Owner}
}

// lasting returns the registers of a key that outlive its destruction and go on
// into every later incarnation, so that a key brought back from an old snapshot
// is no looser than it was: one-way attributes that have their last value, and
// trusted. Those that say what the birth says too are left out. It commutes with
// Merge (TestMergeLaws), and shares values with r.
func (r *Record) lasting() map[string]Register {
	out := map[string]Register{}
	for name, reg := range r.Registers {
		if lasts(r.Kind, name, reg) && (r.Destroyed || !r.bornWith(name, reg)) {
			out[name] = reg
		}
	}
	return out
}

// lasts tells whether a tombstone of this kind may hold the register.
func lasts(k Kind, name string, reg Register) bool {
	if k != KindKey {
		return false
	}
	winner, oneWay := oneWay[name]
	return name == registerTrusted || oneWay && strings.HasPrefix(name, attrPrefix) && reg.Bool() == winner
}

// bornWith tells whether the core of a live key says as much as the register:
// nobody trusts a key before it is born.
func (r *Record) bornWith(name string, reg Register) bool {
	switch name {
	case attrPrefix + "sensitive":
		return r.Core.SensitiveAtBirth
	case attrPrefix + "extractable":
		return !r.Core.ExtractableAtBirth
	case registerTrusted:
		return reg.Stamp.Compare(r.Core.Created) <= 0
	}
	return false
}

// Revived returns the next incarnation of the key whose tombstone r is, in the
// state of from, which is of the same birth and from before: but what is in r
// lasts.
func (r *Record) Revived(from *Record) *Record {
	next := from.Clone()
	next.Incarnation = r.Incarnation + 1
	mergeRegisters(next.Registers, r.lasting())
	return next
}

// Latest returns the latest stamp in the record, for the clock to observe.
func (r *Record) Latest() Stamp {
	last := r.Core.Created
	all := []map[string]Register{r.Registers, r.Hidden}
	for _, v := range r.Rivals {
		if all = append(all, v.Registers); v.Core.Created.Compare(last) > 0 {
			last = v.Core.Created
		}
	}
	for _, m := range all {
		for _, reg := range m {
			if reg.Stamp.Compare(last) > 0 {
				last = reg.Stamp
			}
		}
	}
	return last
}

// Shares lists the users the key is shared with, sorted.
func (r *Record) Shares() []string {
	shares := []string{}
	for name, reg := range r.Registers {
		if user, ok := strings.CutPrefix(name, sharePrefix); ok && reg.Bool() {
			shares = append(shares, user)
		}
	}
	slices.Sort(shares)
	return shares
}

// SharedWith tells whether the key is shared with user.
func (r *Record) SharedWith(user string) bool { return r.Registers[sharePrefix+user].Bool() }

// Shown tells whether every crypto user may see the object and use it: public keys,
// and of data objects and certificates those that are not private.
func (r *Record) Shown() bool {
	return r.Core.shown(r.Flag("private"))
}

func (c *Core) shown(private bool) bool {
	return c.Class == ClassPublic || !c.Class.IsKey() && !private
}

// Copyable tells whether an object may be copied: unless it says no. Keys that never
// were extractable may not, since one that is trusted must be the only one there is.
func (r *Record) Copyable() bool {
	reg, said := r.Registers[attrPrefix+"copyable"]
	free := !r.Core.Class.IsKey() || r.Core.Class == ClassPublic || r.Core.ExtractableAtBirth
	return free && (!said || reg.Bool())
}

// Flag reads a boolean key attribute.
func (r *Record) Flag(name string) bool { return r.Registers[AttributeRegister(name)].Bool() }

// QuorumValue is how many approvals a service of the key takes.
func (r *Record) QuorumValue(s Service) int {
	value := r.Registers[AttributeRegister(quorumAttribute[s])].Value
	if len(value) == 0 {
		return 0
	}
	n, err := strconv.Atoi(string(value))
	if err != nil {
		return MaxQuorum // of a version that says it in another way
	}
	return n
}

var quorumAttribute = map[Service]string{ServiceKeyManagement: "manage-key-quorum-value", ServiceKeyUsage: "use-key-quorum-value"}

// Text reads a textual key attribute.
func (r *Record) Text(name string) string { return string(r.Registers[AttributeRegister(name)].Value) }

// CreatedAt is the time of birth.
func (c Core) CreatedAt() time.Time {
	if c.Created.Time == 0 {
		return time.Time{}
	}
	return c.Created.Wall()
}

// Format prints what the record is and none of its registers, some of which
// are sealed. Where fmt does not ask for methods, that is in unexported fields,
// keep a *Record, which prints as an address; a Record would show its registers
// (its material never: see Secret).
func (r Record) Format(f fmt.State, _ rune) {
	state := "live"
	if r.Destroyed {
		state = "destroyed"
	}
	fmt.Fprintf(f, "[%s %s, %s, incarnation %d]", r.Kind, r.Ref, state, r.Incarnation)
}

// LogValue is Format, for slog.
func (r Record) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// MarshalText refuses, and with it encoding/json: a record leaves an HSM masked.
func (r Record) MarshalText() ([]byte, error) {
	return nil, errors.New("hsm: a record is not to be marshalled; mask it")
}

// MarshalBinary refuses, and with it gob and CBOR.
func (r Record) MarshalBinary() ([]byte, error) { return r.MarshalText() }
