package soft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// pending is a provisional operation. Its fields do not change.
type pending struct {
	op      hsm.OpID
	by      hsm.Principal
	since   time.Time
	lease   time.Time // its end
	objects []hsm.MaskedObject
	recs    []*hsm.Record // of the objects, authenticated
	births  map[hsm.KeyRef][16]byte
	fresh   bool // its keys were made by this HSM for it
	copies  bool // its keys were exported earlier, and exist apart from it
	// committed, if not nil, is called when the objects have become visible.
	committed func()
}

func (p *pending) refs() []hsm.KeyRef {
	refs := make([]hsm.KeyRef, len(p.objects))
	for i, m := range p.objects {
		refs[i] = m.Ref
	}
	return refs
}

// opTable holds the provisional operations, in memory alone. An operation is in
// it from the moment its references are reserved.
type opTable struct {
	mu      sync.Mutex
	pending map[hsm.OpID]*pending
	byRef   map[hsm.KeyRef]*pending
	aborted map[hsm.OpID]bool // resolved as aborted, and still pending
	locks   [4096]sync.Mutex  // by operation: one step of it at a time
	marks   marks
	most    int                   // bytes of one principal's objects, for tests; 0: maxPendingBytes
	bytes   map[hsm.Principal]int // of the objects
	all     int                   // of them
}

// Bounds of the masked objects that are provisional, of one principal and of all: they
// are in memory, some four times as large, and whoever may create need not commit.
const (
	maxPendingBytes    = 64 << 20
	maxAllPendingBytes = 256 << 20
)

// size counts the bytes of an operation's objects.
func (p *pending) size() (n int) {
	for _, m := range p.objects {
		n += len(m.Bytes)
	}
	return n
}

func (t *opTable) lock(op hsm.OpID) (unlock func()) {
	m := &t.locks[(int(op[0])<<8|int(op[1]))%len(t.locks)]
	m.Lock()
	return m.Unlock
}

func (t *opTable) get(op hsm.OpID) *pending {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pending[op]
}

// reserve takes the operation's references. ErrExist or ErrConflict if another
// operation has one of them, ErrFull if too much waits for a commit.
func (t *opTable) reserve(p *pending) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending == nil {
		t.pending, t.byRef, t.aborted, t.bytes = map[hsm.OpID]*pending{}, map[hsm.KeyRef]*pending{}, map[hsm.OpID]bool{}, map[hsm.Principal]int{}
	}
	n := p.size()
	if t.bytes[p.by]+n > cmp.Or(t.most, maxPendingBytes) || t.all+n > maxAllPendingBytes {
		return fmt.Errorf("%w: objects of %d bytes wait for a commit, %d of them of %s %q; commit or abort those first", hsm.ErrFull, t.all, t.bytes[p.by], p.by.Role, p.by.Name)
	}
	for ref, birth := range p.births {
		if other := t.byRef[ref]; other != nil {
			if other.births[ref] != birth {
				return fmt.Errorf("%w: %s is being created as another key", hsm.ErrConflict, ref)
			}
			return fmt.Errorf("%w: %s is being created by another operation", hsm.ErrExist, ref)
		}
	}
	t.pending[p.op] = p
	t.bytes[p.by] += n
	t.all += n
	for ref := range p.births {
		t.byRef[ref] = p
	}
	return nil
}

func (t *opTable) remove(p *pending) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending[p.op] != p {
		return
	}
	delete(t.pending, p.op)
	delete(t.aborted, p.op)
	n := p.size()
	t.all -= n
	if t.bytes[p.by] -= n; t.bytes[p.by] == 0 {
		delete(t.bytes, p.by)
	}
	for ref := range p.births {
		delete(t.byRef, ref)
	}
}

// holding returns the operation under which a reference is provisional.
func (t *opTable) holding(scope hsm.Scope, ref hsm.KeyRef) *pending {
	if scope != hsm.ScopeLineage {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byRef[ref]
}

func (t *opTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.pending)
}

// countBy counts the provisional keys of a crypto user.
func (t *opTable) countBy(name string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.pending {
		if p.by.Role == hsm.RoleCryptoUser && p.by.Name == name {
			n += len(p.objects)
		}
	}
	return n
}

// promise marks a pending operation as one that no client commits any more.
func (t *opTable) promise(op hsm.OpID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.aborted[op] = true
}

func (t *opTable) promised(op hsm.OpID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.aborted[op]
}

// born tells whether all keys of the operation came into being for it: this HSM
// made them, or they are no older than a creation may last. Keys that existed
// before are only copied by it.
func (p *pending) born() bool {
	if p == nil || p.copies || len(p.recs) == 0 {
		return false
	}
	oldest := p.since.Add(-maxLease)
	return p.fresh || !slices.ContainsFunc(p.recs, func(r *hsm.Record) bool { return r.Core.CreatedAt().Before(oldest) })
}

// mark is what remains of an operation that was committed or aborted.
type mark struct {
	_     struct{} `cbor:",toarray"`
	State uint8
	Time  uint64 // Unix milliseconds
	Role  hsm.Role
	Name  string
	Refs  []hsm.KeyRef
	// Born tells of a committed operation that its keys were born for it, so that
	// an abort may destroy them.
	Born bool
}

func (m *mark) state() hsm.OpState { return hsm.OpState(m.State) }

func (h *HSM) readMark(op hsm.OpID) (*mark, error) {
	key := opKey(prefixMark, op)
	if h.ops.marks.absent.surely(key) {
		return nil, nil
	}
	b, err := get(h.store.db, key)
	if b == nil || err != nil {
		return nil, err
	}
	return parseMark(b)
}

func parseMark(b []byte) (*mark, error) {
	var m mark
	if err := cbor.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w: mark of an operation does not decode", hsm.ErrCorrupt)
	}
	return &m, nil
}

// Bounds of the marks kept. A duplicate that comes after its mark is gone meets
// an unknown operation: it cannot commit, and what it prepares falls in doubt
// and is dropped.
const (
	markLife  = 24 * time.Hour
	maxMarks  = 1 << 20
	pruneEach = 1 << 10
)

// marks bounds the number of marks on disk.
type marks struct {
	absent *absent // marks made long ago and dropped stay in it, until the next start
	mu     sync.Mutex
	count  int
	added  int // since the last pruning
}

func (c *marks) load(r pebble.Reader) error {
	c.absent = newAbsent(4 * maxMarks)
	return scan(r, []byte{prefixMarkTime}, func(key, _ []byte) (bool, error) {
		op, _, err := markOf(key)
		c.absent.add(opKey(prefixMark, op))
		c.count++
		return true, err
	})
}

// due counts one more mark and tells, once in a while, how many to drop
// whatever their age.
func (c *marks) due() (excess int, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	if c.added++; c.added < pruneEach {
		return 0, false
	}
	c.added = 0
	return max(0, c.count-maxMarks), true
}

func (c *marks) dropped(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count -= n
}

// mark adds to the step that an operation is over.
func (t *tx) mark(p *pending, op hsm.OpID, state hsm.OpState) {
	m := mark{State: uint8(state), Time: uint64(t.h.opts.Now().UnixMilli()), Born: state == hsm.OpCommitted && p.born()}
	if p != nil {
		m.Role, m.Name, m.Refs = p.by.Role, p.by.Name, p.refs()
	}
	b, err := cborMode.Marshal(m)
	if t.err == nil {
		t.err = err
	}
	key := opKey(prefixMark, op)
	t.h.ops.marks.absent.add(key) // before anybody can see it
	t.set(key, b)
	t.set(markTimeKey(m.Time, op), nil)
}

// pruneMarks drops old marks, once in a while. It is called after a mark was
// written.
func (h *HSM) pruneMarks() error {
	excess, due := h.ops.marks.due()
	if !due {
		return nil
	}
	t, n := h.begin(), 0
	oldest := uint64(h.opts.Now().Add(-markLife).UnixMilli())
	err := scan(h.store.db, []byte{prefixMarkTime}, func(key, _ []byte) (bool, error) {
		op, at, err := markOf(key)
		if err != nil || (n >= excess && at >= oldest) || n >= 4*pruneEach {
			return false, err
		}
		n++
		t.delete(append([]byte{}, key...))
		t.dropMark(op, at)
		return true, nil
	})
	if err != nil {
		return h.store.wrap("prune", err)
	}
	h.ops.marks.dropped(n)
	return t.commit()
}

// dropMark deletes an operation's mark, unless a later one has replaced it.
func (t *tx) dropMark(op hsm.OpID, at uint64) {
	m, err := t.h.readMark(op)
	if t.err == nil {
		t.err = err
	}
	if m != nil && m.Time == at {
		t.delete(opKey(prefixMark, op))
	}
}

func markOf(key []byte) (op hsm.OpID, millis uint64, err error) {
	if len(key) != 1+8+len(op) {
		return op, 0, fmt.Errorf("%w: mark of an operation", hsm.ErrCorrupt)
	}
	return hsm.OpID(key[9:]), binary.BigEndian.Uint64(key[1:9]), nil
}
