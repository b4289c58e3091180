package hsmtest

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Mode is how a call fails.
type Mode int

// The modes. A remote call that reports an error may have been done.
const (
	NotApplied Mode = iota // the call does nothing
	Applied                // the call does its work, and its answer is lost
)

// String names the mode.
func (m Mode) String() string {
	if m == Applied {
		return "applied"
	}
	return "not applied"
}

// Plan says which call fails, and how. One plan may serve several sessions:
// their calls are counted together, in the order in which they begin. A test
// runs once with a plan that never fails to learn the number of calls, and then
// walks n over all of them, in both modes. It is safe for concurrent use.
type Plan struct {
	mu     sync.Mutex
	mode   Mode
	at     int // 0: never
	failed string
	calls  int
}

// FailAt returns a plan in which call n fails, counting from 1; 0 is never.
func FailAt(n int, mode Mode) *Plan { return &Plan{at: n, mode: mode} }

// Calls returns the number of calls so far.
func (p *Plan) Calls() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

// Failed names the method that failed, "" if none has.
func (p *Plan) Failed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// next counts a call and returns the error it fails with, or nil.
func (p *Plan) next(method string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls++; p.calls != p.at {
		return nil
	}
	p.failed = method
	return fmt.Errorf("%w: injected fault at call %d, %s, %s", hsm.ErrUnavailable, p.at, method, p.mode)
}

// do runs one call under the plan.
func do[T any](p *Plan, method string, call func() (T, error)) (T, error) {
	fault := p.next(method)
	var none T
	if fault == nil {
		return call()
	}
	if p.mode == Applied {
		if _, err := call(); err != nil {
			return none, err
		}
	}
	return none, fault
}

func doErr(p *Plan, method string, call func() error) error {
	_, err := do(p, method, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// doSeq runs one reading call under the plan: not applied, it yields the error
// alone; applied, the error comes after half of what there is to read, as when
// a stream breaks. Sequences without end break after 64.
func doSeq[T any](p *Plan, method string, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		fault := p.next(method)
		if fault == nil {
			seq(yield)
			return
		}
		var head []T
		for v, err := range seq {
			if p.mode == NotApplied || err != nil || len(head) == 128 {
				break
			}
			head = append(head, v)
		}
		for _, v := range head[:len(head)/2] {
			if !yield(v, nil) {
				return
			}
		}
		var none T
		yield(none, fault)
	}
}

// Faulty wraps a session so that calls fail as the plan says, with
// hsm.ErrUnavailable. What it returns is an hsm.Session like any other.
func Faulty(s hsm.Session, p *Plan) hsm.Session { return &faulty{faultyReplica{s, p}, s, p} }

type faulty struct {
	faultyReplica
	s hsm.Session
	p *Plan
}

// faultyReplica is the part that sessions and scopes share.
type faultyReplica struct {
	r hsm.SketchReplica
	p *Plan
}

func (f faultyReplica) Lineage() hsm.Lineage { return f.r.Lineage() }

func (f faultyReplica) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return doSeq(f.p, "Objects", f.r.Objects(ctx))
}

func (f faultyReplica) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return doSeq(f.p, "Extract", f.r.Extract(ctx, refs))
}

func (f faultyReplica) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	return do(f.p, "Insert", func() (hsm.Inserted, error) { return f.r.Insert(ctx, objects) })
}

func (f faultyReplica) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return do(f.p, "FingerprintKeys", func() (hsm.FingerprintKeys, error) { return f.r.FingerprintKeys(ctx) })
}

func (f faultyReplica) Root(ctx context.Context) (hsm.Root, error) {
	return do(f.p, "Root", func() (hsm.Root, error) { return f.r.Root(ctx) })
}

func (f faultyReplica) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return doSeq(f.p, "Cells", f.r.Cells(ctx, from))
}

func (f *faulty) Principal() hsm.Principal { return f.s.Principal() }

func (f *faulty) Scoped(s hsm.Scope) hsm.SketchReplica { return faultyReplica{f.s.Scoped(s), f.p} }

func (f *faulty) Info(ctx context.Context) (hsm.Info, error) {
	return do(f.p, "Info", func() (hsm.Info, error) { return f.s.Info(ctx) })
}

func (f *faulty) Members(ctx context.Context) ([]hsm.Member, error) {
	return do(f.p, "Members", func() ([]hsm.Member, error) { return f.s.Members(ctx) })
}

func (f *faulty) Prepare(ctx context.Context, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	return doErr(f.p, "Prepare", func() error { return f.s.Prepare(ctx, op, lease, objects) })
}

func (f *faulty) Commit(ctx context.Context, op hsm.OpID) error {
	return doErr(f.p, "Commit", func() error { return f.s.Commit(ctx, op) })
}

func (f *faulty) Abort(ctx context.Context, op hsm.OpID) error {
	return doErr(f.p, "Abort", func() error { return f.s.Abort(ctx, op) })
}

func (f *faulty) Resolve(ctx context.Context, op hsm.OpID) (hsm.OpState, error) {
	return do(f.p, "Resolve", func() (hsm.OpState, error) { return f.s.Resolve(ctx, op) })
}

func (f *faulty) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	return do(f.p, "Create", func() (hsm.Created, error) { return f.s.Create(ctx, op, r) })
}

func (f *faulty) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	return do(f.p, "Change", func() (hsm.MaskedObject, error) { return f.s.Change(ctx, c) })
}

func (f *faulty) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	return do(f.p, "Use", func() ([]byte, error) { return f.s.Use(ctx, u) })
}

func (f *faulty) Token(ctx context.Context, service hsm.Service, key hsm.KeyRef) ([]byte, error) {
	return do(f.p, "Token", func() ([]byte, error) { return f.s.Token(ctx, service, key) })
}

func (f *faulty) Tokens(ctx context.Context) ([]hsm.TokenInfo, error) {
	return do(f.p, "Tokens", func() ([]hsm.TokenInfo, error) { return f.s.Tokens(ctx) })
}

func (f *faulty) DeleteTokens(ctx context.Context, all bool) (int, error) {
	return do(f.p, "DeleteTokens", func() (int, error) { return f.s.DeleteTokens(ctx, all) })
}

func (f *faulty) Keys(ctx context.Context, filter hsm.Filter) iter.Seq2[hsm.KeyInfo, error] {
	return doSeq(f.p, "Keys", f.s.Keys(ctx, filter))
}

func (f *faulty) Key(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	return do(f.p, "Key", func() (hsm.KeyInfo, error) { return f.s.Key(ctx, ref) })
}

func (f *faulty) Users(ctx context.Context) ([]hsm.UserInfo, error) {
	return do(f.p, "Users", func() ([]hsm.UserInfo, error) { return f.s.Users(ctx) })
}

func (f *faulty) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	return do(f.p, "Envelope", func() ([]byte, error) { return f.s.Envelope(ctx, custodians, threshold) })
}

func (f *faulty) Sign(ctx context.Context, purpose hsm.Purpose, message []byte) (hsm.LineageSignature, error) {
	return do(f.p, "Sign", func() (hsm.LineageSignature, error) { return f.s.Sign(ctx, purpose, message) })
}

// Close always closes the session.
func (f *faulty) Close() error { return f.s.Close() }
