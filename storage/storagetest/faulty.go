package storagetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/hsmbackup/hsmbackup/storage"
)

// ErrInjected is in every error that Faulty makes up, beside the sentinel it
// pretends (ErrUnreachable, ErrFull), so that a test can tell it from a real one.
var ErrInjected = errors.New("injected fault")

// Op is one kind of call.
type Op string

// The calls of a Store. A List counts when it is ranged over.
const (
	Put    Op = "put"
	Get    Op = "get"
	List   Op = "list"
	Delete Op = "delete"
)

// Mode is how a call fails.
type Mode int

const (
	// NotApplied: nothing happens, the call fails.
	NotApplied Mode = iota
	// Applied: the call does all it should and then reports failure all the same,
	// as when the answer is lost. A Get delivers half of its bytes and a List half
	// of its objects (rounded down) before the error.
	Applied
)

func (m Mode) String() string { return [...]string{"not applied", "applied"}[m] }

// Fault says which calls fail and how.
type Fault struct {
	N    int  // the nth call, from 1, among those that Only lets through
	Mode Mode // of the nth call
	// Dead: every call after the nth fails too, not applied, whatever it is: the
	// process was killed or the network is gone.
	Dead bool
	Only func(op Op, name string) bool // nil: all calls
	Err  error                         // sentinel to pretend; nil: storage.ErrUnreachable
}

// Faulty wraps a store and makes it fail as told. It is safe for concurrent use;
// calls are counted in the order in which they begin. A fresh Faulty does not
// fail.
//
// To try every point of a procedure: run it once with no fault and ask Calls,
// then run it for each N up to that, in both modes, with and without Dead; then
// check what holds and run it again without fault.
type Faulty struct {
	store storage.Store

	mu    sync.Mutex
	fault Fault
	total int // calls since New
	seen  int // calls that the fault counts, since Set
	dead  bool
	room  int64 // bytes left; below 0: no limit
}

// NewFaulty wraps a store.
func NewFaulty(store storage.Store) *Faulty { return &Faulty{store: store, room: -1} }

// Set replaces the fault, counts from 1 again, and revives a dead store. The
// zero Fault never fails.
func (f *Faulty) Set(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.seen, f.dead = fault, 0, false
}

// FullAfter lets Puts store that many more bytes; a Put that does not fit stores
// nothing and fails with ErrFull. A negative number lifts the limit.
func (f *Faulty) FullAfter(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room = bytes
}

// Calls returns how many calls there were since NewFaulty.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total
}

// Fired reports whether the fault that was last Set has struck.
func (f *Faulty) Fired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault.N > 0 && f.seen >= f.fault.N
}

// begin counts a call and returns the error it is to fail with, or nil, and how.
func (f *Faulty) begin(op Op, name string) (Mode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total++
	if f.dead {
		return NotApplied, f.injected(op, name)
	}
	if f.fault.N == 0 || f.fault.Only != nil && !f.fault.Only(op, name) {
		return 0, nil
	}
	if f.seen++; f.seen != f.fault.N {
		return 0, nil
	}
	f.dead = f.fault.Dead
	return f.fault.Mode, f.injected(op, name)
}

func (f *Faulty) injected(op Op, name string) error {
	kind := f.fault.Err
	if kind == nil {
		kind = storage.ErrUnreachable
	}
	return failure(op, name, kind)
}

func failure(op Op, name string, kind error) error {
	return &storage.Error{Op: string(op), Name: name, Location: "faulty store", Kind: kind, Err: ErrInjected}
}

// reserve takes room for a Put.
func (f *Faulty) reserve(name string, size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.room < 0:
		return nil
	case size > f.room:
		return failure(Put, name, storage.ErrFull)
	}
	f.room -= size
	return nil
}

func (f *Faulty) release(size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.room >= 0 {
		f.room += size
	}
}

// Put implements storage.Store.
func (f *Faulty) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	mode, fail := f.begin(Put, name)
	if fail != nil && mode == NotApplied {
		return fail
	}
	if err := f.reserve(name, size); err != nil {
		return err
	}
	if err := f.store.Put(ctx, name, body, size); err != nil {
		f.release(size)
		return err
	}
	return fail
}

// Get implements storage.Store.
func (f *Faulty) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	mode, fail := f.begin(Get, name)
	if fail != nil && mode == NotApplied {
		return nil, fail
	}
	r, err := f.store.Get(ctx, name, offset, length)
	if err != nil || fail == nil {
		return r, err
	}
	return breakOff(r, fail)
}

// breakOff reads everything, since half of it is known only then.
func breakOff(r io.ReadCloser, fail error) (io.ReadCloser, error) {
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(&halved{b[:len(b)/2], fail}), nil
}

type halved struct {
	rest []byte
	fail error
}

func (h *halved) Read(p []byte) (int, error) {
	if len(h.rest) == 0 {
		return 0, h.fail
	}
	n := copy(p, h.rest)
	h.rest = h.rest[n:]
	return n, nil
}

// List implements storage.Store.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		mode, fail := f.begin(List, prefix)
		switch {
		case fail == nil:
			f.store.List(ctx, prefix)(yield)
		case mode == NotApplied:
			yield(storage.Info{}, fail)
		default:
			f.listHalf(ctx, prefix, fail, yield)
		}
	}
}

func (f *Faulty) listHalf(ctx context.Context, prefix string, fail error, yield func(storage.Info, error) bool) {
	var all []storage.Info
	for info, err := range f.store.List(ctx, prefix) {
		if err != nil {
			yield(info, err)
			return
		}
		all = append(all, info)
	}
	for _, info := range all[:len(all)/2] {
		if !yield(info, nil) {
			return
		}
	}
	yield(storage.Info{}, fail)
}

// Delete implements storage.Store.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	mode, fail := f.begin(Delete, name)
	if fail != nil && mode == NotApplied {
		return fail
	}
	if err := f.store.Delete(ctx, name); err != nil {
		return err
	}
	return fail
}

// String names the wrapped store.
func (f *Faulty) String() string { return fmt.Sprintf("faulty %v", f.store) }

var _ storage.Store = (*Faulty)(nil)
