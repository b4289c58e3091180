package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// aes asks for a token key that may do everything a test wants.
func aes() hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32,
		Attributes: map[string]string{"label": "k", "encrypt": "true", "decrypt": "true", "sign": "true", "derive": "true", "wrap": "true", "unwrap": "true"}}
}

func ec() hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ec", Curve: "secp256r1",
		Attributes: map[string]string{"sign": "true"}, Public: map[string]string{"verify": "true"}}
}

func TestCreateIsOnEveryHSM(t *testing.T) {
	checkGoroutines(t)
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser)
	made, err := c.Create(t.Context(), ec(), Policy{})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Keys) != 2 || len(made.Coverage) < 2 {
		t.Errorf("made %d keys on %v; want a pair on 2 HSMs at least", len(made.Keys), made.Coverage)
	}
	if err := c.Close(); err != nil { // waits for the rest
		t.Fatal(err)
	}
	for _, k := range made.Keys {
		if n := w.holders(k.Ref); n != 3 {
			t.Errorf("key %s is on %d HSMs after Close; want 3", k.Ref, n)
		}
	}
}

// TestCreateMatrix is cloudhsm.md §3.8, with both vocabularies.
func TestCreateMatrix(t *testing.T) {
	sdk3, sdk5, unchecked := Policy{MinCopies: 1}, Policy{MinCopies: 2, CheckOnUse: true}, Policy{MinCopies: 1}
	twoCopies := Policy{MinCopies: 2}
	tests := []struct {
		name       string
		hsms, away int
		policy     Policy
		want       error
		copies     int
	}{
		{"1 HSM, SDK 3 default", 1, 0, sdk3, nil, 1},
		{"1 HSM, SDK 5 default", 1, 0, sdk5, ErrAvailability, 0},
		{"1 HSM, N=2", 1, 0, twoCopies, ErrMinCopies, 0},
		{"1 HSM, check disabled", 1, 0, unchecked, nil, 1},
		{"3 HSMs, one unreachable, N=2", 3, 1, sdk5, nil, 2},
		{"3 HSMs, two unreachable, N=2", 3, 2, sdk5, ErrMinCopies, 0},
		{"2 HSMs, one unreachable, N=1", 2, 1, sdk3, nil, 1},
		{"2 HSMs, one unreachable, SDK 3 N=2", 2, 1, twoCopies, ErrMinCopies, 0},
		{"2 HSMs, one unreachable, SDK 5", 2, 1, sdk5, ErrAvailability, 0},
		{"3 HSMs, N=4", 3, 0, Policy{MinCopies: 4}, ErrMinCopies, 0},
		{"5 HSMs, N=1", 5, 0, sdk3, nil, 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tt.hsms, 2, true)
				c := w.open(asUser, WithPolicy(tt.policy))
				for _, b := range w.boxes[:tt.away] {
					b.away.Store(true)
				}
				made, err := c.Create(t.Context(), aes(), Policy{})
				if !errors.Is(err, tt.want) {
					t.Fatalf("Create: %v; want %v", err, tt.want)
				}
				c.Close()
				if err != nil {
					checkRefusal(t, err, tt.policy)
					w.converge()
					w.checkNoKeys()
					return
				}
				if n := w.holders(made.Keys[0].Ref); n != tt.copies {
					t.Errorf("the key is on %d HSMs; want %d", n, tt.copies)
				}
				w.converge()
				if n := w.holders(made.Keys[0].Ref); n != tt.hsms {
					t.Errorf("after server-side sync the key is on %d HSMs; want %d", n, tt.hsms)
				}
			})
		})
	}
}

func checkRefusal(t *testing.T, err error, p Policy) {
	t.Helper()
	if !strings.Contains(err.Error(), fmt.Sprintf("min-copies is %d", p.MinCopies)) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q; want one line that names min-copies", err)
	}
	exact := fmt.Sprintf(" does not meet the availability requirements - The key must be available on at least %d HSMs before being used.", p.MinCopies)
	if strings.Contains(err.Error(), exact) != p.CheckOnUse {
		t.Errorf("error %q; CloudHSM's text wanted: %t", err, p.CheckOnUse)
	}
}

// checkNoKeys checks that no HSM serves any key.
func (w *world) checkNoKeys() {
	w.t.Helper()
	for _, b := range w.boxes {
		if live, _ := b.keysOn(); len(live) > 0 {
			w.t.Errorf("%s still has %v", b.member.Name, live)
		}
	}
}

// TestScenario6CallRaisesThePolicyAndNeverLowersIt: of KMU's flag and the number in
// the file the larger applies.
func TestScenario6CallRaisesThePolicyAndNeverLowersIt(t *testing.T) {
	w := newWorld(t, 2, 2, true)
	c := w.open(asUser, WithPolicy(Policy{MinCopies: 3}))
	if _, err := c.Create(t.Context(), aes(), Policy{MinCopies: 1}); !errors.Is(err, ErrMinCopies) {
		t.Errorf("-min_srv 1, file 3: %v; want ErrMinCopies", err)
	}
	c = w.open(asUser, WithPolicy(Policy{MinCopies: 1}))
	if _, err := c.Create(t.Context(), aes(), Policy{MinCopies: 3}); !errors.Is(err, ErrMinCopies) {
		t.Errorf("-min_srv 3, file 1: %v; want ErrMinCopies", err)
	}
	if _, err := c.Create(t.Context(), aes(), Policy{MinCopies: 2}); err != nil {
		t.Errorf("-min_srv 2, file 1: %v", err)
	}
}

// protocol are the calls of a creation and of its cleanup.
var protocol = []string{"Create", "Prepare", "Commit", "Abort", "Insert", "Extract", "Change"}

// TestCreateFailsAnywhere lets every call of a creation in its turn fail in every
// way. Success must leave the wanted copies, at once and for ever; failure must
// leave nothing, once all HSMs are back.
func TestCreateFailsAnywhere(t *testing.T) {
	for _, hsms := range []int{1, 2, 3} {
		for n := 1; n <= hsms; n++ {
			for _, f := range []fault{drop, lose, hang, kill, killing} {
				t.Run(fmt.Sprintf("%dHSMs/N=%d/%s", hsms, n, f), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t, hsms, n, false)
						quick := fast
						quick.call, quick.cleanup = 100*time.Millisecond, 300*time.Millisecond
						c := w.open(asUser, withTiming(quick))
						for step := int64(1); ; step++ {
							if !w.createWithFault(c, step, f, n) || t.Failed() {
								return
							}
						}
					})
				})
			}
		}
	}
}

// createWithFault creates a key while one call fails. It tells whether the
// creation came so far.
func (w *world) createWithFault(c *Cluster, step int64, f fault, n int) bool {
	w.t.Helper()
	var count atomic.Int64
	w.setFaults(func(b *box, call string) fault {
		if slices.Contains(protocol, call) && count.Add(1) == step {
			return f
		}
		return pass
	})
	made, err := c.Create(context.Background(), aes(), Policy{Timeout: 250 * time.Millisecond})
	reached := count.Load() >= step
	w.quiet()
	if err == nil {
		if got := w.holders(made.Keys[0].Ref); got < n {
			w.t.Errorf("step %d: Create succeeded and the key is on %d HSMs; want %d", step, got, n)
		}
	}
	w.heal()
	if err != nil && len(w.boxes) == 1 {
		// Nobody was left to make a tombstone: the client tells the HSM when it is
		// back.
		c.ops.Wait()
	}
	w.converge()
	w.checkOutcome(fmt.Sprintf("step %d", step), made, err)
	w.awaitUp(c)
	return reached
}

// checkOutcome checks, after convergence, that the key is on all HSMs or on none.
func (w *world) checkOutcome(what string, made *Created, err error) {
	w.t.Helper()
	for _, b := range w.boxes {
		live, _ := b.keysOn()
		switch {
		case err != nil && len(live) > 0:
			w.t.Errorf("%s: Create failed (%v), and %s has %v", what, err, b.member.Name, live)
		case err == nil && (len(live) != 1 || live[0] != made.Keys[0].Ref):
			w.t.Errorf("%s: Create made %s, and %s has %v", what, made.Keys[0].Ref, b.member.Name, live)
		}
		for _, ref := range live { // the next step begins with none
			w.change(b.as(hsm.RoleCryptoUser, userName), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
		}
	}
}

// awaitUp waits until the client uses all HSMs again.
func (w *world) awaitUp(c *Cluster) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	// It must also answer: a call that failed may not have been noticed yet.
	for len(c.up()) < len(w.boxes) || len(c.askClocks(w.t.Context(), c.up(), len(w.boxes))) < len(w.boxes) {
		if time.Now().After(deadline) {
			w.t.Fatalf("the client does not find back to all HSMs: %v", c.noHSM())
		}
		time.Sleep(time.Millisecond)
	}
}

// TestClientDiesAnywhere cuts the client off for ever after every call in its
// turn. The HSMs must agree afterwards: the key is on all or on none. It may be on
// all although the client was told of a failure, but only if the error says that
// HSMs could not be told.
func TestClientDiesAnywhere(t *testing.T) {
	for n := 1; n <= 3; n++ {
		t.Run(fmt.Sprintf("N=%d", n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3, n, false)
				for step := int64(1); !t.Failed(); step++ {
					if !w.createAndDie(step) {
						return
					}
				}
			})
		})
	}
}

func (w *world) createAndDie(step int64) bool {
	w.t.Helper()
	c := w.open(asUser)
	var count atomic.Int64
	w.setFaults(func(b *box, call string) fault {
		if slices.Contains(protocol, call) {
			count.Add(1)
		}
		if count.Load() >= step {
			return drop
		}
		return pass
	})
	made, err := c.Create(context.Background(), aes(), Policy{Timeout: 100 * time.Millisecond})
	c.Close()
	reached := count.Load() >= step
	w.converge()
	on, ref := 0, hsm.KeyRef(0)
	for _, b := range w.boxes {
		live, _ := b.keysOn()
		for _, ref = range live {
			on++
			w.change(b.as(hsm.RoleCryptoUser, userName), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
		}
	}
	var short *CopiesError
	switch {
	case on != 0 && on != len(w.boxes):
		w.t.Errorf("step %d: the key is on %d HSMs after convergence", step, on)
	case err == nil && (on == 0 || ref != made.Keys[0].Ref):
		w.t.Errorf("step %d: Create succeeded and the key is gone", step)
	case err != nil && on > 0 && (!errors.As(err, &short) || len(short.Undelivered) == 0 || !strings.Contains(err.Error(), "failed to tombstone on node:")):
		w.t.Errorf("step %d: Create failed and the key is there, unannounced: %v", step, err)
	}
	return reached
}

// keyCount counts live token keys over all HSMs.
func (w *world) keyCount() (n int) {
	for _, b := range w.boxes {
		live, _ := b.keysOn()
		n += len(live)
	}
	return n
}

// maskedElsewhere exports a key of the same lineage and owner made in another
// cluster.
func (w *world) maskedElsewhere() []hsm.MaskedObject {
	w.t.Helper()
	other := newWorldOf(w.t, w.keyring, 1, 1, false)
	c := other.open(asUser)
	made, err := c.Create(context.Background(), aes(), Policy{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []hsm.MaskedObject
	for m, err := range c.Extract(context.Background(), slices.Values([]hsm.KeyRef{made.Keys[0].Ref})) {
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// TestInsertOfAnotherBirthIsRefused: one reference, two keys.
func TestInsertOfAnotherBirthIsRefused(t *testing.T) {
	w := newWorld(t, 3, 2, false)
	c := w.open(asUser)
	objects := w.maskedElsewhere()
	if _, err := c.Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: objects}, Policy{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(t.Context(), objects[0].Ref); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: objects}, Policy{}); !errors.Is(err, hsm.ErrExist) {
		t.Errorf("the same object again: %v; want ErrExist", err)
	}
	if n := w.holders(objects[0].Ref); n != 3 {
		t.Errorf("after a refused repetition the key is on %d HSMs", n)
	}
}

func TestCancelledCreateLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checkGoroutines(t)
		w := newWorld(t, 3, 3, false)
		c := w.open(asUser)
		ctx, cancel := context.WithCancel(t.Context())
		w.setFaults(func(b *box, call string) fault {
			if call == "Commit" && b == w.boxes[1] {
				cancel()
				return drop
			}
			return pass
		})
		if _, err := c.Create(ctx, aes(), Policy{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Create: %v; want context.Canceled", err)
		}
		w.converge()
		w.checkNoKeys()
		c.Close()
	})
}
