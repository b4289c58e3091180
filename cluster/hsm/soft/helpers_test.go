package soft

import (
	"crypto/rand"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

const testPassword = "password"

// fataler is a test, a benchmark or a rapid check.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Errorf(format string, args ...any)
}

// clock is a wall clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func testOptions(fs vfs.FS) Options {
	return Options{Dir: "store", FS: fs, ID: hsm.NewHSMID(), Cluster: hsm.NewClusterID(), Keyring: hsm.NewKeyring(), Iterations: 1}
}

func must[T any](t fataler) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func open(t testing.TB, o Options) *HSM {
	t.Helper()
	h := must[*HSM](t)(Open(o))
	t.Cleanup(func() { _ = h.Close() }) // closed by some tests, broken by others
	return h
}

// withUser makes the admin and the crypto user alice.
func withUser(t testing.TB, h *HSM) *HSM {
	t.Helper()
	apply(t, peer(t, h), hsm.Change{Kind: hsm.ChangeUserCreate, User: "admin", Role: hsm.RoleAdmin, Password: hsm.NewSecret([]byte(testPassword))})
	apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeUserCreate, User: "alice", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword))})
	return h
}

func apply(t testing.TB, s hsm.Session, c hsm.Change) hsm.MaskedObject {
	t.Helper()
	return must[hsm.MaskedObject](t)(s.Change(t.Context(), c))
}

func login(t testing.TB, h *HSM, name string) *session {
	t.Helper()
	s, _, err := h.Module(hsm.Principal{}).Login(t.Context(), hsm.RoleNone, name, hsm.NewSecret([]byte(testPassword)))
	if err != nil {
		t.Fatal(err)
	}
	return s.(*session)
}

func peer(t testing.TB, h *HSM) *session {
	t.Helper()
	return must[hsm.Session](t)(h.Module(hsm.Principal{Role: hsm.RoleHSM, Name: "peer"}).Session(t.Context())).(*session)
}

func randomOp() (op hsm.OpID) {
	rand.Read(op[:])
	return op
}

var aesRequest = hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32}

// createKey makes a token key and commits it.
func createKey(t testing.TB, s hsm.Session) hsm.KeyInfo {
	t.Helper()
	op := randomOp()
	made := must[hsm.Created](t)(s.Create(t.Context(), op, aesRequest))
	if err := s.Commit(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	return made.Keys[0]
}

// handmade masks a record of an AES key.
func handmade(t fataler, k *hsm.Keyring, owner string, at time.Time) hsm.MaskedObject {
	t.Helper()
	material := make([]byte, 32)
	rand.Read(material)
	stamp := hsm.Stamp{Time: uint64(at.UnixMilli()) << 16, HSM: 1}
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: hsm.NewKeyRef(), Hidden: map[string]hsm.Register{}, Material: hsm.NewSecret(material),
		Registers: must[map[string]hsm.Register](t)(template(hsm.ClassSecret, "aes", true, map[string]string{"label": "a label of some length"}, stamp)),
		Core:      hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: 32, Origin: hsm.MethodGenerate, Created: stamp, Owner: owner},
	}
	r.Birth = must[[16]byte](t)(k.Birth(r))
	return must[hsm.MaskedObject](t)(k.Mask(r))
}

func each(objects []hsm.MaskedObject) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// checkStore compares everything that is kept twice: sketches with listings,
// listings with objects, indexes with records, counts.
func checkStore(t fataler, h *HSM) {
	t.Helper()
	live := int64(0)
	for _, scope := range scopes {
		root := reconcile.NewRootState(h.keys().FingerprintKeys())
		listed := map[hsm.KeyRef]hsm.Object{}
		err := scan(h.store.db, []byte{prefixDigest, byte(scope)}, func(key, value []byte) (bool, error) {
			ref, err := refOf(key)
			if err != nil {
				return false, err
			}
			o, err := decodeDigest(ref, value)
			listed[ref] = o
			root.Add(reconcile.ItemOf(o))
			return true, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := h.states[scope].Root(); got != root.Root() {
			t.Errorf("scope %d: the root kept is not that of the listing", scope)
		}
		cells := reconcile.NewState(h.keys().FingerprintKeys(), 0)
		for _, o := range listed {
			cells.Update(nil, &o)
		}
		if !slices.Equal(cells.Cells(), h.states[scope].Cells()) {
			t.Errorf("scope %d: the sketch kept is not that of the listing", scope)
		}
		objects := 0
		err = scan(h.store.db, []byte{prefixObject, byte(scope)}, func(key, _ []byte) (bool, error) { objects++; return true, nil })
		if err != nil || objects != len(listed) {
			t.Errorf("scope %d: %d objects, %d listed, %v", scope, objects, len(listed), err)
		}
		for ref, o := range listed {
			cur := must[*held](t)(h.read(scope, ref))
			if cur == nil || cur.obj != o {
				t.Errorf("%s is listed otherwise than it is", ref)
				continue
			}
			if o.Kind == hsm.KindKey {
				checkIndex(t, h, cur.rec)
			}
			if o.Kind == hsm.KindKey && !o.Tombstone {
				live++
			}
		}
	}
	if got := h.liveKeys.Load(); got != live {
		t.Errorf("%d live keys counted, there are %d", got, live)
	}
	checkIndexTotal(t, h)
}

func checkIndex(t fataler, h *HSM, r *hsm.Record) {
	t.Helper()
	for key, rel := range entries(r) {
		if v := must[[]byte](t)(get(h.store.db, []byte(key))); len(v) != 1 || v[0] != rel {
			t.Errorf("%s: an index entry is missing", r.Ref)
		}
	}
}

// checkIndexTotal checks that no index entry is left of a former state.
func checkIndexTotal(t fataler, h *HSM) {
	t.Helper()
	want, got := 0, 0
	for _, ref := range must[[]hsm.KeyRef](t)(refsOfKeys(h)) {
		want += len(entries(must[*held](t)(h.read(hsm.ScopeLineage, ref)).rec))
	}
	for _, prefix := range []byte{prefixLabel, prefixUser} {
		if err := scan(h.store.db, []byte{prefix}, func(_, _ []byte) (bool, error) { got++; return true, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if got != want {
		t.Errorf("%d index entries, want %d", got, want)
	}
}

func refsOfKeys(h *HSM) (refs []hsm.KeyRef, err error) {
	err = scan(h.store.db, []byte{prefixDigest, byte(hsm.ScopeLineage)}, func(key, value []byte) (bool, error) {
		if hsm.Kind(value[0]) == hsm.KindKey {
			ref, err := refOf(key)
			refs = append(refs, ref)
			return err == nil, err
		}
		return true, nil
	})
	return refs, err
}
