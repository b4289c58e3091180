package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

// TestTakeUnderFaults fails every storage call of a full and an incremental take
// in turn: not applied, or applied and reported as failed, and with the process
// living on or dead from then on. Then the same command runs again, with the
// same content and with other: every snapshot that is listed verifies, and the
// newest restores to the cluster's root.
func TestTakeUnderFaults(t *testing.T) {
	for _, fault := range []storagetest.Fault{
		{Mode: storagetest.NotApplied}, {Mode: storagetest.Applied}, {Mode: storagetest.NotApplied, Dead: true}, {Mode: storagetest.Applied, Dead: true},
	} {
		t.Run(fmt.Sprintf("%s, dead %t", fault.Mode, fault.Dead), func(t *testing.T) {
			t.Parallel()
			for fault.N = 1; takeUnderFault(t, fault); fault.N++ {
			}
			if fault.N < 12 {
				t.Fatalf("two takes of %d storage calls", fault.N)
			}
		})
	}
}

// takeUnderFault returns false if the fault came too late to hit anything.
func takeUnderFault(t *testing.T, fault storagetest.Fault) bool {
	c, store := newTestCluster(t, 2), newStore(t)
	c.cheap(t)
	refs := keys(c.hsm(0), 5)
	c.sync(t)
	f := storagetest.NewFaulty(store)
	f.Set(fault)
	for range 2 {
		_, err := Take(t.Context(), c, f, c.options())
		if err != nil && !errors.Is(err, storagetest.ErrInjected) {
			t.Fatalf("call %d: %v", fault.N, err)
		}
		c.hsm(0).SetLabel(refs[0], "changed")
		c.sync(t)
	}
	if fault.N%2 == 0 {
		keys(c.hsm(1), 2)
		c.sync(t)
	}
	r := mustTake(t, c, store, c.options())
	if r.Root != rootOf(t, c.hsm(0)) {
		t.Fatalf("call %d: the snapshot has another root", fault.N)
	}
	all, err := List(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		mustVerify(t, c, store, s.ID)
	}
	if got := restore(t, c.open(t, store, "")); rootOf(t, got) != r.Root {
		t.Fatalf("call %d: restored to another root", fault.N)
	}
	return f.Calls() >= fault.N
}

// TestManifestPutLosesItsAnswer: the put of the manifest is done and reported
// as done by someone else, as a driver that cannot know reports it.
func TestManifestPutLosesItsAnswer(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 3)
	r := mustTake(t, c, &forgetful{store}, c.options())
	if r.ID != "0000000001" || count(t, store, "manifests/") != 1 {
		t.Fatalf("%+v", r)
	}
}

type forgetful struct{ storage.Store }

func (f *forgetful) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	return errors.Join(f.Store.Put(ctx, name, body, size), storage.ErrExist)
}

func TestRacingTakesBothSucceed(t *testing.T) {
	for _, full := range []bool{false, true} {
		c, store := newTestCluster(t, 2), newStore(t)
		refs := keys(c.hsm(0), 20)
		c.sync(t)
		mustTake(t, c, store, c.options())
		c.hsm(0).SetLabel(refs[0], "changed")
		c.sync(t)
		o := c.options()
		o.Full = full
		// While the first signs, the cluster changes and a second take is faster.
		c.signing = func([]byte) {
			c.signing = nil
			keys(c.hsm(1), 2)
			c.sync(t)
			mustTake(t, c, store, c.options())
		}
		r := mustTake(t, c, store, o)
		if full && (r.ID != "0000000003" || r.NewObjects != 22 || r.Parent != "") {
			t.Fatalf("full: %+v", r)
		}
		if !full && (!r.Unchanged || r.ID != "0000000002") {
			t.Fatalf("%+v", r)
		}
		if r.Root != rootOf(t, c.hsm(0)) {
			t.Fatal("the newest snapshot lacks what the one before holds")
		}
		for _, id := range []string{"1", "2", r.ID} {
			mustVerify(t, c, store, id)
		}
	}
}

func TestManyRacingTakes(t *testing.T) {
	c, store := newTestCluster(t, 2), newStore(t)
	keys(c.hsm(0), 20)
	c.sync(t)
	var wg sync.WaitGroup
	ids := make([]string, 6)
	for i := range ids {
		wg.Go(func() {
			keys(c.hsm(i%2), 1)
			r, err := Take(t.Context(), c, store, c.options())
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = r.ID
		})
	}
	wg.Wait()
	c.sync(t)
	r := mustTake(t, c, store, c.options())
	if r.Root != rootOf(t, c.hsm(0)) {
		t.Fatal("roots differ")
	}
	for _, id := range slices.Compact(append(slices.Sorted(slices.Values(ids)), r.ID)) {
		mustVerify(t, c, store, id)
	}
}

func TestCancelledTakeLeavesNoSnapshot(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 30)
	ctx, cancel := context.WithCancel(t.Context())
	c.signing = func([]byte) { cancel() }
	if _, err := Take(ctx, c, store, c.options()); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	c.signing = nil
	if all, err := List(t.Context(), store); err != nil || len(all) != 0 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	mustTake(t, c, store, c.options())
	mustVerify(t, c, store, "")
}

func TestForeignLineageIsRefused(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 3)
	stranger := newTestCluster(t, 1)
	c.wrap = func(s NamedSource) NamedSource { s.Sketcher = stranger.hsm(0); return s }
	_, err := Take(t.Context(), c, store, c.options())
	wantErr(t, err, hsm.ErrLineage)
	if len(names(t, store)) != 0 {
		t.Fatal("something was written")
	}
}

func TestTwoLineagesShareARepository(t *testing.T) {
	a, b, store := newTestCluster(t, 1), newTestCluster(t, 1), newStore(t)
	keys(a.hsm(0), 3)
	keys(b.hsm(0), 4)
	mustTake(t, a, store, a.options())
	if r := mustTake(t, b, store, b.options()); r.Parent != "" || r.Objects != 4 {
		t.Fatalf("%+v", r)
	}
	if r := mustTake(t, a, store, a.options()); !r.Unchanged || r.ID != "0000000001" {
		t.Fatalf("%+v", r)
	}
	l := a.keyring.Lineage()
	_, err := Open(t.Context(), store, "", OpenOptions{Trust: &l})
	wantErr(t, err, hsm.ErrLineage)
}

func TestOptionsAreChecked(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	for name, change := range map[string]func(*TakeOptions){
		"bad recipient":  func(o *TakeOptions) { o.Recipients = []string{"age1x"} },
		"mixed":          func(o *TakeOptions) { o.Recipients = append(o.Recipients, x25519Recipient) },
		"small packs":    func(o *TakeOptions) { o.PackSize = 1000 },
		"large packs":    func(o *TakeOptions) { o.PackSize = 1 << 30 },
		"tag of no name": func(o *TakeOptions) { o.Tags = map[string]string{"": "x"} },
		"tag of 2 lines": func(o *TakeOptions) { o.Tags = map[string]string{"a": "x\ny"} },
	} {
		o := c.options()
		change(&o)
		if _, err := Take(t.Context(), c, store, o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	c.threshold = 2
	_, err := Take(t.Context(), c, store, c.options())
	wantErr(t, err, ErrRecipient)
	if len(names(t, store)) != 0 {
		t.Fatal("something was written")
	}
}

const x25519Recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"

// TestTakeOnAFullStore lets a store fill up at every so many bytes of a take:
// there is no snapshot, the error says why, and with more room the same take
// succeeds.
func TestTakeOnAFullStore(t *testing.T) {
	c := newTestCluster(t, 1)
	c.cheap(t)
	keys(c.hsm(0), 20)
	for room := int64(0); ; room += 700 {
		store := newStore(t)
		f := storagetest.NewFaulty(store)
		f.FullAfter(room)
		if _, err := Take(t.Context(), c, f, c.options()); err == nil {
			if room < 4*700 {
				t.Errorf("all of a snapshot in %d bytes", room)
			}
			return
		} else if !errors.Is(err, storage.ErrFull) {
			t.Fatalf("room for %d bytes: %v", room, err)
		} else {
			wantErr(t, err, storage.ErrFull)
		}
		if n := count(t, store, "manifests/"); n != 0 {
			t.Fatalf("room for %d bytes: %d snapshots", room, n)
		}
		f.FullAfter(-1)
		mustVerify(t, c, store, mustTake(t, c, f, c.options()).ID)
	}
}
