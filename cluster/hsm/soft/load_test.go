package soft

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// loadable makes an HSM with users, keys, a shared one and a tombstone, and
// returns it with all of its objects, ascending.
func loadable(t *testing.T, o Options) (*HSM, []hsm.MaskedObject) {
	t.Helper()
	o.Dir = t.TempDir()
	h := withUser(t, open(t, o))
	alice := login(t, h, "alice")
	for range 50 {
		createKey(t, alice)
	}
	if _, err := alice.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: createKey(t, alice).Ref}); err != nil {
		t.Fatal(err)
	}
	var refs []hsm.KeyRef
	s := peer(t, h)
	for o, err := range s.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, o.Ref)
	}
	var all []hsm.MaskedObject
	for m, err := range s.Extract(t.Context(), slices.Values(refs)) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return h, all
}

// passing yields objects whose bytes are gone when the next one is asked for.
func passing(objects iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for m, err := range objects {
			m.Bytes = bytes.Clone(m.Bytes)
			if !yield(m, err) {
				return
			}
			clear(m.Bytes)
		}
	}
}

// dealt deals objects to n parts in turn, so that all parts overlap.
func dealt(objects []hsm.MaskedObject, n int) []iter.Seq2[hsm.MaskedObject, error] {
	hands := make([][]hsm.MaskedObject, n)
	for i, m := range objects {
		hands[i%n] = append(hands[i%n], m)
	}
	parts := make([]iter.Seq2[hsm.MaskedObject, error], n)
	for i, hand := range hands {
		parts[i] = passing(each(hand))
	}
	return parts
}

func keysOf(t *testing.T, s hsm.Session, f hsm.Filter) (out []hsm.KeyInfo) {
	t.Helper()
	for k, err := range s.Keys(t.Context(), f) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, k)
	}
	return out
}

// TestLoadIsInsert: a loaded HSM is, to whoever asks, the one that its objects
// are of; also after it was opened again.
func TestLoadIsInsert(t *testing.T) {
	o := testOptions(nil)
	source, all := loadable(t, o)
	for _, parts := range []int{1, 3, 100} {
		o.Dir = t.TempDir()
		h := open(t, o)
		n, err := peer(t, h).Load(t.Context(), "", dealt(all, parts))
		if err != nil || n.Added != len(all) {
			t.Fatal(n, err)
		}
		for range 2 {
			if got, want := h.info(), source.info(); got.Root != want.Root || got.Keys != want.Keys || h.floor.objects.Load() < int64(len(all)) {
				t.Fatalf("%d parts: %+v, want %+v", parts, got, want)
			}
			alice, before := login(t, h, "alice"), login(t, source, "alice")
			if diff := cmp.Diff(keysOf(t, before, hsm.Filter{}), keysOf(t, alice, hsm.Filter{})); diff != "" {
				t.Fatal(diff)
			}
			label := keysOf(t, before, hsm.Filter{})[0].Label
			f := hsm.Filter{Attrs: map[string]string{"label": label}}
			if diff := cmp.Diff(keysOf(t, before, f), keysOf(t, alice, f)); diff != "" {
				t.Fatal(diff)
			}
			if _, err := h.opts.FS.Stat(h.opts.FS.PathJoin(h.store.dir, loadFolder)); err == nil {
				t.Error("the folder of tables is left")
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			o.Existing = true
			h = open(t, o)
			o.Existing = false
		}
		createKey(t, login(t, h, "alice"))
	}
}

// TestLoadRefuses: an HSM that a load failed on is as empty as before, and can be
// loaded.
func TestLoadRefuses(t *testing.T) {
	o := testOptions(nil)
	_, all := loadable(t, o)
	o.Dir = t.TempDir()
	h := open(t, o)
	s := peer(t, h)
	broken := errors.New("the source is broken")
	forged := slices.Clone(all)
	forged[20].Bytes = slices.Clone(forged[20].Bytes)
	forged[20].Bytes[len(forged[20].Bytes)-1]++
	for name, c := range map[string]struct {
		parts []iter.Seq2[hsm.MaskedObject, error]
		want  error
	}{
		"broken":       {append(dealt(all, 2), func(yield func(hsm.MaskedObject, error) bool) { yield(hsm.MaskedObject{}, broken) }), broken},
		"forged":       {dealt(forged, 2), hsm.ErrCorrupt},
		"twice":        {append(dealt(all, 2), each(all[7:8])), hsm.ErrInvalid},
		"not in order": {[]iter.Seq2[hsm.MaskedObject, error]{each([]hsm.MaskedObject{all[1], all[0]})}, hsm.ErrInvalid},
	} {
		if _, err := s.Load(t.Context(), "", c.parts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if n := h.info().Root.Count; n != 0 {
			t.Fatalf("%s: it left %d objects", name, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Load(ctx, "", dealt(all, 2)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := s.Load(t.Context(), "", dealt(all, 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), "", dealt(all, 2)); !errors.Is(err, hsm.ErrExist) {
		t.Errorf("again: %v, want ErrExist", err)
	}
	for _, p := range []hsm.Principal{{Role: hsm.RoleAppliance, Name: "backup"}} {
		o.Dir = t.TempDir()
		other, err := open(t, o).Module(p).Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.(hsm.Loader).Load(t.Context(), "", dealt(all, 2)); !errors.Is(err, hsm.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", p.Role, err)
		}
	}
}

// TestLoadLeavesNothingToTidy: however parts that do not overlap are shared out among the
// workers, their tables do not overlap either, so the store has none of them to write again.
func TestLoadLeavesNothingToTidy(t *testing.T) {
	o := testOptions(nil)
	_, all := loadable(t, o)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // workers
	begun := make(chan struct{})
	var parts []iter.Seq2[hsm.MaskedObject, error]
	for part := range slices.Chunk(all, 3) {
		parts = append(parts, each(part))
	}
	first, second := parts[0], parts[1]
	parts[0] = func(yield func(hsm.MaskedObject, error) bool) {
		<-begun // by the other worker
		first(yield)
	}
	parts[1] = func(yield func(hsm.MaskedObject, error) bool) {
		close(begun)
		second(yield)
	}
	o.Dir, o.loadApart = t.TempDir(), 1
	h := open(t, o)
	if _, err := peer(t, h).Load(t.Context(), "", parts); err != nil {
		t.Fatal(err)
	}
	levels, err := h.store.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	n, last := 0, len(levels)-1
	for level, tables := range levels {
		for _, table := range tables {
			if prefix := table.Smallest.UserKey[0]; prefix != prefixObject && prefix != prefixDigest {
				continue
			}
			if n++; level != last {
				t.Errorf("table %s to %s in level %d, want %d", table.Smallest, table.Largest, level, last)
			}
		}
	}
	if n < 4 {
		t.Fatalf("%d tables of %d parts: nothing was tried", n, len(parts))
	}
}
