package soft

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// twins are two HSMs of one cluster that drift apart and are synced.
type twins struct {
	t       testing.TB
	clock   *clock
	options [2]Options
	hsms    [2]*HSM
	refs    []hsm.KeyRef
	gone    map[hsm.KeyRef]bool // destroyed somewhere
}

func newTwins(t testing.TB) *twins {
	w := &twins{t: t, clock: newClock(), gone: map[hsm.KeyRef]bool{}}
	first := testOptions(vfs.NewMem())
	first.Now = w.clock.Now
	second := first
	second.FS, second.ID = vfs.NewMem(), hsm.NewHSMID()
	w.options = [2]Options{first, second}
	for i, o := range w.options {
		w.hsms[i] = must[*HSM](t)(Open(o))
	}
	withUser(t, w.hsms[0])
	apply(t, login(t, w.hsms[0], "admin"), hsm.Change{Kind: hsm.ChangeUserCreate, User: "bob", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword))})
	w.pull(0, 1)
	return w
}

func (w *twins) close() {
	for _, h := range w.hsms {
		if err := h.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

// pull syncs both scopes, one way.
func (w *twins) pull(from, to int) {
	for _, scope := range scopes {
		_, err := reconcile.Sync(w.t.Context(), peer(w.t, w.hsms[from]).Scoped(scope), peer(w.t, w.hsms[to]).Scoped(scope))
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// step does one random thing on one of the HSMs.
func (w *twins) step(r *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(r, "hsm")
	h := w.hsms[i]
	w.clock.advance(time.Duration(rapid.IntRange(0, 2).Draw(r, "ms")) * time.Millisecond)
	switch rapid.SampledFrom([]string{"create", "create", "label", "share", "freeze", "destroy", "fail", "login", "password", "pull", "reopen"}).Draw(r, "do") {
	case "create":
		w.refs = append(w.refs, createKey(w.t, login(w.t, h, "alice")).Ref)
	case "label":
		w.change(r, h, hsm.Change{Kind: hsm.ChangeAttribute, Name: "label", Value: fmt.Sprint(rapid.IntRange(0, 3).Draw(r, "label"))})
	case "freeze":
		w.change(r, h, hsm.Change{Kind: hsm.ChangeAttribute, Name: "extractable", Value: "false"})
	case "share":
		kind := rapid.SampledFrom([]hsm.ChangeKind{hsm.ChangeShare, hsm.ChangeUnshare}).Draw(r, "share")
		w.change(r, h, hsm.Change{Kind: kind, User: "bob"})
	case "destroy":
		w.change(r, h, hsm.Change{Kind: hsm.ChangeDestroy})
	case "fail":
		_, _, _ = h.Module(hsm.Principal{}).Login(w.t.Context(), hsm.RoleNone, "bob", hsm.NewSecret([]byte("wrong")))
	case "login":
		_, _, _ = h.Module(hsm.Principal{}).Login(w.t.Context(), hsm.RoleNone, "bob", hsm.NewSecret([]byte(testPassword)))
	case "password":
		apply(w.t, login(w.t, h, "admin"), hsm.Change{Kind: hsm.ChangeUserPassword, User: "bob", Password: hsm.NewSecret([]byte(testPassword))})
	case "pull":
		w.pull(1-i, i)
	case "reopen":
		if err := h.Close(); err != nil {
			w.t.Error(err)
		}
		w.hsms[i] = must[*HSM](w.t)(Open(w.options[i]))
	}
}

// change changes a random key, which may be unknown or destroyed there.
func (w *twins) change(r *rapid.T, h *HSM, c hsm.Change) {
	if len(w.refs) == 0 {
		return
	}
	c.Ref = rapid.SampledFrom(w.refs).Draw(r, "key")
	_, err := login(w.t, h, "alice").Change(w.t.Context(), c)
	if err == nil && c.Kind == hsm.ChangeDestroy {
		w.gone[c.Ref] = true
	}
}

// TestTwinsConverge: whatever happens on two HSMs and in whatever order they
// hear of it, each is whole at every moment, both end equal, no key is lost and
// none comes back.
func TestTwinsConverge(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newTwins(t)
		defer w.close()
		for range rapid.IntRange(5, 40).Draw(r, "steps") {
			w.step(r)
		}
		w.pull(0, 1)
		w.pull(1, 0)
		for _, scope := range scopes {
			if a, b := w.hsms[0].states[scope].Root(), w.hsms[1].states[scope].Root(); a != b {
				r.Fatalf("scope %d: roots differ after sync", scope)
			}
		}
		for _, h := range w.hsms {
			checkStore(r, h)
			for _, ref := range w.refs {
				cur := must[*held](r)(h.read(hsm.ScopeLineage, ref))
				if cur == nil || cur.obj.Tombstone != w.gone[ref] {
					r.Fatalf("key %s: lost or back", ref)
				}
			}
		}
	})
}
