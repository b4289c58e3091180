package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAClockAheadDoesNotStopSync: what an HSM has made since its clock was set hours
// ahead is refused; what it holds from before comes to the others all the same.
func TestAClockAheadDoesNotStopSync(t *testing.T) {
	w := newWorld(t, 2)
	w.createAlice()
	ahead, other := w.boxes[0], w.boxes[1]
	other.stop()
	alice := ahead.alice()
	var before []hsm.KeyRef
	for i := range 20 {
		before = append(before, w.createKey(alice, fmt.Sprint("before-", i)))
	}
	ahead.stop()
	ahead.now = func() time.Time { return time.Now().Add(3 * time.Hour) }
	ahead.start()
	alice = ahead.alice()
	var since []hsm.KeyRef
	for i := range 20 {
		since = append(since, w.createKey(alice, fmt.Sprint("since-", i)))
	}
	// What belongs to the cluster is ahead, too.
	if _, _, err := ahead.client().Login(t.Context(), hsm.RoleNone, "alice", secret("not-her-password")); !errors.Is(err, hsm.ErrLogin) {
		t.Fatal(err)
	}
	other.start()
	w.eventually("keys from before are not on the other HSM", func() bool {
		for _, ref := range before {
			if _, err := other.self().Key(t.Context(), ref); err != nil {
				return false
			}
		}
		return true
	})
	for _, ref := range since {
		if _, err := other.self().Key(t.Context(), ref); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("a key from the future: %v", err)
		}
	}
	if at := other.server.sync.lastSync(); !at.IsZero() {
		t.Error("the other HSM counts as in sync, and is not")
	}
}

// TestRefusalsAreFew: an object is tried again later and later, at once when a clock was
// set; there is room for so many, which those leave that are not offered any more.
func TestRefusalsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		object := func(i int) hsm.Object { return hsm.Object{Ref: hsm.KeyRef(i)} }
		tries := 0
		for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(5 * time.Second) {
			if r.lately(object(0)) == nil {
				tries++
				r.add(object(0), hsm.ErrFuture)
			}
		}
		if tries < 6 || tries > 13 {
			t.Errorf("an object was tried %d times in an hour", tries)
		}
		if r.forget(); r.lately(object(0)) != nil {
			t.Error("it is not tried again though a clock was set")
		}
		for i := range maxRefusals {
			if !r.add(object(i), hsm.ErrFuture) {
				t.Fatalf("no room for the %dth", i+1)
			}
		}
		if r.add(object(maxRefusals), hsm.ErrFuture) {
			t.Error("there is no end to them")
		}
		time.Sleep(firstRefusal + time.Hour)
		if !r.add(object(maxRefusals), hsm.ErrFuture) {
			t.Error("those that are not offered any more take room")
		}
	})
}

// picky takes objects unless refuses says why not, and counts how often it has refused.
type picky struct {
	hsm.SketchReplica
	refuses  func(hsm.MaskedObject) error
	refusals int
	taken    map[hsm.KeyRef]bool
}

func (p *picky) Insert(_ context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	var n hsm.Inserted
	for m := range objects {
		if err := p.refuses(m); err != nil {
			p.refusals++
			return n, err
		}
		p.taken[m.Ref] = true
		n.Added++
	}
	return n, nil
}

// crowd makes objects in batches as a pull brings them, all of one time.
func crowd(t *testing.T, batches int, at time.Time) (out [][]hsm.MaskedObject) {
	keyring := hsm.NewKeyring()
	for range batches {
		var batch []hsm.MaskedObject
		for range 100 {
			r := &hsm.Record{Ref: hsm.NewKeyRef(), Kind: hsm.KindKey, Core: hsm.Core{
				Class: hsm.ClassSecret, Type: "aes", Size: 16, Origin: hsm.MethodGenerate, Owner: "alice", Created: hsm.Stamp{Time: uint64(at.UnixMilli()) << 16, HSM: 1},
			}, Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{}, Material: secret("0123456789abcdef")}
			var err error
			if r.Birth, err = keyring.Birth(r); err != nil {
				t.Fatal(err)
			}
			m, err := keyring.Mask(r)
			if err != nil {
				t.Fatal(err)
			}
			batch = append(batch, m)
		}
		out = append(out, batch)
	}
	return out
}

// pullsFor pulls time and again, as server-side sync does.
func pullsFor(d time.Duration, to *picky, known *refusals, batches [][]hsm.MaskedObject) {
	for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(5 * time.Second) {
		pull := &tolerant{SketchReplica: to, known: known, info: func(context.Context) (hsm.Info, error) { return hsm.Info{Time: time.Now()}, nil }}
		for _, batch := range batches {
			var lacks []hsm.MaskedObject
			for _, m := range batch {
				if !to.taken[m.Ref] {
					lacks = append(lacks, m)
				}
			}
			if _, err := pull.Insert(context.Background(), func(yield func(hsm.MaskedObject, error) bool) {
				for _, m := range lacks {
					if !yield(m, nil) {
						return
					}
				}
			}); err != nil {
				break
			}
		}
	}
}

// TestACrowdOfTheFutureStopsNobody: each refusal is an entry in the audit log, which nothing
// shortens. Of objects of the future, however many there are, hardly one is asked about; they
// come in when their time has come, and do not keep others out.
func TestACrowdOfTheFutureStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = 15 * time.Minute
		good, future := crowd(t, 1, time.Now()), crowd(t, 2*maxRefusals/100, time.Now().Add(ahead))
		to, known := &picky{taken: map[hsm.KeyRef]bool{}}, &refusals{}
		to.refuses = func(m hsm.MaskedObject) error {
			if _, r, err := hsm.ParseMasked(m.Bytes); err != nil || time.Until(r.Latest().Wall()) > hsm.MaxAhead {
				return hsm.ErrFuture
			}
			return nil
		}
		all := append(slices.Clone(future), good...)
		all[0] = append(all[0], good[0][:50]...) // among them, too
		pullsFor(time.Minute, to, known, all)
		if len(to.taken) != 100 {
			t.Errorf("%d objects came in beside those of the future, want 100", len(to.taken))
		}
		pullsFor(ahead-hsm.MaxAhead, to, known, all)
		if want := 100 * (len(future) + 1); len(to.taken) != want {
			t.Errorf("%d objects are there when their time has come, want %d", len(to.taken), want)
		}
		if to.refusals > len(all) {
			t.Errorf("%d refusals, in %d batches", to.refusals, len(all))
		}
	})
}
