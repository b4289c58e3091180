package cluster

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// createPath is one way to create a token key. request makes a new request each
// time; kept tells that the reference is given beforehand.
type createPath struct {
	request func() hsm.CreateRequest
	kept    bool
}

// createPaths are all of them.
func (w *world) createPaths(c *Cluster) map[string]createPath {
	w.t.Helper()
	base := mustCreate(w.t, c, aes())
	mustWait(w.t, c, base)
	wrapped, err := c.Use(context.Background(), hsm.Use{Kind: hsm.UseWrap, Key: base, Payload: base, Params: hsm.Params{Mechanism: "aes-kwp"}})
	if err != nil {
		w.t.Fatal(err)
	}
	from := func(method hsm.Method, change func(*hsm.CreateRequest)) func() hsm.CreateRequest {
		return func() hsm.CreateRequest {
			r := aes()
			r.Method = method
			change(&r)
			return r
		}
	}
	return map[string]createPath{
		"generate": {request: aes},
		"pair":     {request: ec},
		"import": {request: from(hsm.MethodImport, func(r *hsm.CreateRequest) {
			r.Data = hsm.NewSecret([]byte("0123456789abcdef0123456789abcdef"))
		})},
		"unwrap": {request: from(hsm.MethodUnwrap, func(r *hsm.CreateRequest) {
			r.Key, r.Data, r.Params = base, hsm.NewSecret(slices.Clone(wrapped)), hsm.Params{Mechanism: "aes-kwp"}
		})},
		"derive": {request: from(hsm.MethodDerive, func(r *hsm.CreateRequest) {
			r.Key, r.Params = base, hsm.Params{Mechanism: "sp800-108-counter", Hash: "sha256", SharedInfo: []byte("label"), Context: []byte("context")}
		})},
		"insert": {kept: true, request: func() hsm.CreateRequest {
			return hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: w.maskedElsewhere()}
		}},
		"promote": {kept: true, request: func() hsm.CreateRequest {
			r := aes()
			r.Token = false
			return hsm.CreateRequest{Method: hsm.MethodPromote, Token: true, Key: mustCreate(w.t, c, r)}
		}},
	}
}

// outcome is what happens to a creation on three HSMs of which two must hold the
// key. away takes HSMs away before it, faults meets it under way.
type outcome struct {
	away      int
	faults    func() func(b *box, call string) fault
	want      error
	committed bool // some HSM has committed: not for keys that exist apart from it
}

func outcomes() map[string]outcome {
	// Nobody but the creator prepares, and nobody can be told of the abort.
	alone := func() func(*box, string) fault {
		return func(_ *box, call string) fault {
			if call == "Prepare" || call == "Abort" {
				return drop
			}
			return pass
		}
	}
	// One HSM commits, and the others neither commit nor can be told.
	one := func() func(*box, string) fault {
		var first atomic.Pointer[box]
		return func(b *box, call string) fault {
			if call == "Commit" && first.CompareAndSwap(nil, b) || first.Load() == b || first.Load() == nil {
				return pass
			}
			if slices.Contains([]string{"Commit", "Abort", "Insert"}, call) {
				return drop
			}
			return pass
		}
	}
	return map[string]outcome{
		"success":                        {},
		"one HSM away":                   {away: 1},
		"too few":                        {away: 2, want: ErrMinCopies},
		"failure in the cleanup":         {faults: alone, want: ErrMinCopies},
		"failure after the first commit": {faults: one, want: ErrMinCopies, committed: true},
	}
}

// TestEveryCreatePathEveryOutcome: success means a key on all HSMs that can be
// reached, and on all once they are back; failure means a key nowhere, whatever the
// cleanup met. The same request then succeeds, under a reference never used before.
func TestEveryCreatePathEveryOutcome(t *testing.T) {
	for name, o := range outcomes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				quick := fast
				quick.cleanup = 300 * time.Millisecond
				w := newWorld(t, 3, 2, true)
				c := w.open(asUser, withTiming(quick))
				for path, p := range w.createPaths(c) {
					if o.committed && p.kept && path == "insert" {
						continue // TestFailedInsertDestroysNothing
					}
					w.drive(c, path, p, o)
				}
			})
		})
	}
}

func (w *world) drive(c *Cluster, path string, p createPath, o outcome) {
	w.t.Helper()
	r, before := p.request(), w.keyCount()
	holder := w.boxes[0]
	if r.Method == hsm.MethodPromote {
		k, _ := c.coverage.get(r.Key)
		holder = w.box(k.holders[0])
	}
	for _, b := range w.boxes {
		if b != holder && w.awayNow() < o.away {
			b.away.Store(true)
		}
	}
	if o.faults != nil {
		f := o.faults()
		w.setFaults(f)
	}
	limit := Policy{}
	if o.want != nil {
		limit.Timeout = 400 * time.Millisecond
	}
	made, err := c.Create(context.Background(), r, limit)
	if !errors.Is(err, o.want) || o.want == nil && err != nil {
		w.t.Fatalf("%s: %v; want %v", path, err, o.want)
	}
	if err == nil {
		w.succeeded(c, path, made)
		return
	}
	var short *CopiesError
	errors.As(err, &short)
	w.converge()
	w.awaitUp(c)
	if after := w.keyCount(); after != before {
		w.t.Fatalf("%s: a failed creation left %d copies: %v", path, after-before, err)
	}
	if o.committed && r.Method == hsm.MethodPromote {
		return // the session key became a token key, which was destroyed
	}
	made, err = c.Create(context.Background(), r, Policy{})
	if err != nil {
		w.t.Fatalf("%s, again: %v", path, err)
	}
	if !p.kept && slices.Contains(short.Refs, made.Keys[0].Ref) {
		w.t.Errorf("%s: the reference %s was used again", path, made.Keys[0].Ref)
	}
	w.succeeded(c, path, made)
}

func (w *world) awayNow() (n int) {
	for _, b := range w.boxes {
		if b.away.Load() {
			n++
		}
	}
	return n
}

func (w *world) succeeded(c *Cluster, path string, made *Created) {
	w.t.Helper()
	if len(made.Coverage) < 2 {
		w.t.Errorf("%s: acknowledged on %d HSMs", path, len(made.Coverage))
	}
	w.heal()
	w.sync()
	w.awaitUp(c)
	for _, k := range made.Keys {
		mustWait(w.t, c, k.Ref)
		if n := w.holders(k.Ref); n != 3 {
			w.t.Errorf("%s: the key is on %d HSMs; want 3", path, n)
		}
	}
}

// TestTheCopyGoesToEveryHSM: the number of copies decides success, and nothing
// else.
func TestTheCopyGoesToEveryHSM(t *testing.T) {
	w := newWorld(t, 5, 1, false)
	c := w.open(asUser)
	ref := mustCreate(t, c, aes())
	c.Close() // waits for the rest of the creation; there is no server-side sync here
	if n := w.holders(ref); n != 5 {
		t.Errorf("with one copy asked for, the key is on %d of 5 HSMs", n)
	}
}

// TestInsertNeedsOwnerAndSharedUsers: a key that nobody here may use or destroy is
// not let in, whoever brings it.
func TestInsertNeedsOwnerAndSharedUsers(t *testing.T) {
	other := newWorld(t, 1, 1, false)
	w := newWorldOf(t, other.keyring, 3, 2, false)
	zed := hsm.Change{Kind: hsm.ChangeUserCreate, User: "zed", Role: hsm.RoleCryptoUser, Password: secret("zed-password")}
	other.change(other.admin(0), zed)
	shared := aes()
	shared.Shares = []string{"zed"}
	owned := Credential{Role: hsm.RoleCryptoUser, Name: "zed", Password: secret("zed-password")}
	var objects []hsm.MaskedObject
	for _, ref := range []hsm.KeyRef{mustCreate(t, other.open(owned), aes()), mustCreate(t, other.open(asUser), shared)} {
		objects = append(objects, collect(t, other.open(Credential{}).Extract(t.Context(), slices.Values([]hsm.KeyRef{ref})))...)
	}
	for _, cred := range []Credential{{}, asAdmin, asUser} {
		c := w.open(cred)
		for i, m := range objects {
			_, err := c.Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: []hsm.MaskedObject{m}}, Policy{})
			if denied := cred.Name == userName && i == 0; !errors.Is(err, hsm.ErrNotFound) && !(denied && errors.Is(err, hsm.ErrDenied)) {
				t.Errorf("%q, object %d: %v; want that zed is not there", cred.Name, i, err)
			}
		}
	}
	w.converge()
	w.checkNoKeys()
	w.change(w.admin(0), zed)
	w.sync()
	for _, m := range objects {
		if _, err := w.open(Credential{}).Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: []hsm.MaskedObject{m}}, Policy{}); err != nil {
			t.Errorf("with zed: %v", err)
		}
	}
}
