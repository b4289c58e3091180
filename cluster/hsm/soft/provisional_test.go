package soft

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// opModel is what an operation with one key should be.
type opModel struct {
	state  hsm.OpState
	held   bool // its key is provisional here
	lease  time.Time
	stored string // "" or "live"
}

// machine drives an HSM and the model together.
type machine struct {
	fs      *vfs.MemFS
	clock   *clock
	options Options
	h       *HSM
	s       *session
	objects []hsm.MaskedObject
	model   []opModel
	steps   int
}

const machineOps = 4

func newMachine(t *rapid.T) *machine {
	m := &machine{fs: vfs.NewCrashableMem(), clock: newClock(), model: make([]opModel, machineOps)}
	m.options = testOptions(m.fs)
	m.options.Now = m.clock.Now
	for range machineOps {
		m.objects = append(m.objects, handmade(t, m.options.Keyring, "alice", m.clock.Now()))
	}
	m.reopen(t)
	return m
}

// reopen continues from what a crash of the machine would leave: nothing is
// provisional any more, and what was decided is.
func (m *machine) reopen(t *rapid.T) {
	for i := range m.model {
		o := &m.model[i]
		if o.held = false; o.state == hsm.OpPrepared {
			o.state = hsm.OpUnknown
		}
	}
	old := m.h
	m.fs = m.fs.CrashClone(vfs.CrashCloneCfg{})
	if old != nil {
		_ = old.Close()
	}
	m.options.FS = m.fs
	m.h = must[*HSM](t)(Open(m.options))
	m.s = m.h.newSession(hsm.Principal{Role: hsm.RoleHSM, Name: "peer"})
}

func opOf(i int) hsm.OpID { return hsm.OpID{0xff, byte(i + 1)} }

func expect(t *rapid.T, what string, i int, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s %d: %v, want %v", what, i, got, want)
	}
}

func (m *machine) pick(t *rapid.T) (int, *opModel) {
	i := rapid.IntRange(0, machineOps-1).Draw(t, "op")
	return i, &m.model[i]
}

func (m *machine) expired(o *opModel) bool { return m.clock.Now().After(o.lease) }

func (m *machine) prepare(t *rapid.T) {
	i, o := m.pick(t)
	lease := time.Duration(rapid.IntRange(1, 60).Draw(t, "lease")) * time.Second
	err := m.s.Prepare(context.Background(), opOf(i), lease, m.objects[i:i+1])
	switch {
	case o.state == hsm.OpAborted:
		expect(t, "prepare", i, err, hsm.ErrOp)
	case o.state == hsm.OpUnknown && o.stored != "":
		expect(t, "prepare", i, err, hsm.ErrExist)
	case o.state == hsm.OpUnknown:
		expect(t, "prepare", i, err, nil)
		*o = opModel{state: hsm.OpPrepared, held: true, lease: m.clock.Now().Add(lease)}
	default:
		expect(t, "prepare", i, err, nil)
	}
}

func (m *machine) commit(t *rapid.T) {
	i, o := m.pick(t)
	err := m.s.Commit(context.Background(), opOf(i))
	switch {
	case o.state == hsm.OpCommitted:
		expect(t, "commit", i, err, nil)
	case o.state == hsm.OpPrepared && !m.expired(o):
		expect(t, "commit", i, err, nil)
		*o = opModel{state: hsm.OpCommitted, stored: "live"}
	default:
		expect(t, "commit", i, err, hsm.ErrOp)
	}
}

func (m *machine) abort(t *rapid.T) {
	i, o := m.pick(t)
	err := m.s.Abort(context.Background(), opOf(i))
	if o.state == hsm.OpCommitted { // an HSM destroys nothing so
		expect(t, "abort of what is committed", i, err, hsm.ErrDenied)
		return
	}
	expect(t, "abort", i, err, nil)
	*o = opModel{state: hsm.OpAborted, stored: o.stored}
}

func (m *machine) resolve(t *rapid.T) {
	i, o := m.pick(t)
	got, err := m.s.Resolve(context.Background(), opOf(i))
	expect(t, "resolve", i, err, nil)
	if o.state == hsm.OpUnknown || o.state == hsm.OpPrepared && m.expired(o) {
		o.state = hsm.OpAborted // a promise; what is held stays held
	}
	if got != o.state {
		t.Fatalf("resolve %d: state %d, want %d", i, got, o.state)
	}
}

func (m *machine) resolveAs(t *rapid.T) {
	i, o := m.pick(t)
	committed := rapid.Bool().Draw(t, "committed")
	err := m.h.ResolveAs(context.Background(), opOf(i), committed)
	switch {
	case o.held && committed:
		expect(t, "resolve as committed", i, err, nil)
		*o = opModel{state: hsm.OpCommitted, stored: "live"}
	case o.held:
		expect(t, "resolve as dropped", i, err, nil)
		*o = opModel{state: hsm.OpAborted}
	case committed && o.state == hsm.OpCommitted, !committed && o.state == hsm.OpAborted:
		expect(t, "resolve as it was", i, err, nil)
	default:
		expect(t, "resolve as it was not", i, err, hsm.ErrOp)
	}
}

func (m *machine) insert(t *rapid.T) {
	i, o := m.pick(t)
	_, err := m.s.Insert(context.Background(), each(m.objects[i:i+1]))
	expect(t, "insert", i, err, nil)
	if o.held {
		o.state, o.held = hsm.OpCommitted, false
	}
	if o.stored == "" {
		o.stored = "live"
	}
}

// check compares what can be seen with the model.
func (m *machine) check(t *rapid.T) {
	var doubt []hsm.OpID
	for i, o := range m.model {
		cur := must[*held](t)(m.h.read(hsm.ScopeLineage, m.objects[i].Ref))
		got := ""
		if cur != nil {
			got = map[bool]string{true: "tombstone", false: "live"}[cur.obj.Tombstone]
		}
		if got != o.stored {
			t.Fatalf("key %d is %q, want %q", i, got, o.stored)
		}
		if o.held && m.expired(&o) {
			doubt = append(doubt, opOf(i))
		}
	}
	var got []hsm.OpID
	for _, p := range m.h.InDoubt() {
		got = append(got, p.Op)
	}
	slices.SortFunc(got, func(a, b hsm.OpID) int { return int(a[1]) - int(b[1]) })
	if !slices.Equal(got, doubt) {
		t.Fatalf("in doubt %x, want %x", got, doubt)
	}
	if m.steps++; m.steps%8 == 0 {
		checkStore(t, m.h)
	}
}

// TestProvisionalStateMachine runs random steps, crashes among them, and
// compares the HSM with the model after each.
func TestProvisionalStateMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		defer func() { _ = m.h.Close() }()
		defer func() { checkStore(t, m.h) }()
		t.Repeat(map[string]func(*rapid.T){
			"prepare": m.prepare, "commit": m.commit, "abort": m.abort, "resolve": m.resolve, "resolveAs": m.resolveAs,
			"insert": m.insert, "crash": m.reopen,
			"wait": func(t *rapid.T) { m.clock.advance(time.Duration(rapid.IntRange(1, 40).Draw(t, "s")) * time.Second) },
			"":     m.check,
		})
	})
}

// TestMarksAreBounded: old marks go, young ones stay, also over a restart.
func TestMarksAreBounded(t *testing.T) {
	c, o := newClock(), testOptions(vfs.NewMem())
	o.Now = c.Now
	h := open(t, o)
	s := peer(t, h)
	mark := func(n byte, times int) {
		t.Helper()
		for i := range times {
			if err := s.Abort(t.Context(), hsm.OpID{n, byte(i >> 8), byte(i), 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	mark(1, pruneEach-1)
	c.advance(markLife + time.Second)
	mark(2, 1)
	for n, want := range map[byte]bool{1: false, 2: true} {
		m, err := h.readMark(hsm.OpID{n, 0, 0, 1})
		if err != nil || (m != nil) != want {
			t.Errorf("mark %d: %v, %v", n, m, err)
		}
	}
	if h.ops.marks.count != 1 {
		t.Errorf("%d marks counted, want 1", h.ops.marks.count)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if h = open(t, o); h.ops.marks.count != 1 {
		t.Errorf("%d marks counted after a restart, want 1", h.ops.marks.count)
	}
}

// TestInDoubtNames lists what server-side sync needs, the oldest first.
func TestInDoubtNames(t *testing.T) {
	c, o := newClock(), testOptions(vfs.NewMem())
	o.Now = c.Now
	h := withUser(t, open(t, o))
	s := login(t, h, "alice")
	var want []string
	for range 3 {
		op := randomOp()
		made := must[hsm.Created](t)(s.Create(t.Context(), op, aesRequest))
		want = append(want, fmt.Sprint(op, made.Keys[0].Ref, c.Now().UnixMilli()))
		c.advance(time.Second)
	}
	if got := h.InDoubt(); len(got) != 0 {
		t.Errorf("in doubt before the lease is over: %v", got)
	}
	c.advance(time.Minute)
	var got []string
	for _, p := range h.InDoubt() {
		got = append(got, fmt.Sprint(p.Op, p.Refs[0], p.Since.UnixMilli()))
	}
	if !slices.Equal(got, want) {
		t.Errorf("in doubt %v, want %v", got, want)
	}
}

// TestProvisionalObjectsAreBounded: a user who creates and does not commit fills no HSM's
// memory; what is settled makes room.
func TestProvisionalObjectsAreBounded(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	h.ops.most = 8 << 10
	alice := login(t, h, "alice")
	var ops []hsm.OpID
	var err error
	for err == nil {
		op := randomOp()
		if _, err = alice.Create(t.Context(), op, aesRequest); err == nil {
			ops = append(ops, op)
		}
		if len(ops) > 100 {
			t.Fatal("there is no bound")
		}
	}
	wantErr(t, "one too many", err, hsm.ErrFull)
	apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeUserCreate, User: "bob", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword))})
	createKey(t, login(t, h, "bob")) // has room of his own
	for i, op := range ops {
		if i%2 == 0 {
			wantErr(t, "commit", alice.Commit(t.Context(), op), nil)
		} else {
			wantErr(t, "abort", alice.Abort(t.Context(), op), nil)
		}
	}
	if h.ops.all != 0 || len(h.ops.bytes) != 0 {
		t.Errorf("%d bytes are counted when nothing is provisional", h.ops.all)
	}
	createKey(t, alice)
}

// TestPromotionOfAKeyThatChanges: what becomes a token key is the session key as it is
// when it is known to be on its way, and none that was destroyed.
func TestPromotionOfAKeyThatChanges(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	alice := login(t, h, "alice")
	request := aesRequest
	request.Token = false
	for range 200 {
		made := must[hsm.Created](t)(alice.Create(t.Context(), randomOp(), request))
		ref, op := made.Keys[0].Ref, randomOp()
		destroyed := make(chan error)
		go func() {
			_, err := alice.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
			destroyed <- err
		}()
		_, promoted := alice.Create(t.Context(), op, hsm.CreateRequest{Method: hsm.MethodPromote, Token: true, Key: ref})
		if err := <-destroyed; err == nil && promoted == nil {
			t.Fatal("a key was destroyed, and becomes a token key")
		}
	}
}

// TestNothingIsLaterThanTheEnd: the time after the last one is not the first.
func TestNothingIsLaterThanTheEnd(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	alice := login(t, h, "alice")
	k := createKey(t, alice)
	_, err := alice.Change(t.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: k.Ref, Name: "application", Value: "x", After: math.MaxUint64})
	wantErr(t, "after the end of time", err, hsm.ErrFuture)
}
