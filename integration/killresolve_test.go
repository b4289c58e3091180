package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// resolveMoments are fewer than moments: each needs a conflict of its own.
var resolveMoments = []float64{0.35, 0.6, 0.75, 0.9}

// TestKillResolve kills synckey resolve, and HSMs of either side under it, at several
// moments. Run again, with the HSMs back, it continues: one key stands under the
// reference, the other is kept once, and the roots are equal.
func TestKillResolve(t *testing.T) {
	t.Parallel()
	w := newResolveWorld(t)
	began := time.Now()
	w.resolvedAfter(t, func(command []string) { w.b.admin().ok(t, command...) })
	usual := time.Since(began)
	all := t // HSMs that are started again live on after the moment that killed them
	for i, share := range resolveMoments {
		after := time.Duration(share * float64(usual))
		t.Run(fmt.Sprintf("the command, at %.2f", share), func(t *testing.T) {
			w.resolvedAfter(t, func(command []string) { killAfter(t, w.b.admin(), after, command...) })
		})
		side, n := w.west, i%len(w.west.hsms)
		if i%2 == 1 {
			side, n = w.b.testCluster, 0
		}
		t.Run(fmt.Sprintf("an HSM, at %.2f", share), func(t *testing.T) {
			w.resolvedAfter(t, func(command []string) {
				p := w.b.admin().start(t, command...)
				select { // no HSM is killed if the command was faster
				case <-p.done:
				case <-time.After(after):
					side.hsms[n].kill()
				}
				select {
				case <-p.done:
				case <-time.After(deadline):
					t.Fatal("synckey resolve hangs after the death of an HSM")
				}
				side.startAll(all)
			})
		})
	}
}

// resolveWorld is two clones between which conflicts are planted and decided.
type resolveWorld struct {
	b       backedUp
	west    *testCluster
	keyring *hsm.Keyring
	next    hsm.KeyRef
	want    map[string]string // material by reference, of the keys that conflicts left
	keys    int               // that alice had before
}

func newResolveWorld(t *testing.T) *resolveWorld {
	t.Helper()
	b := newBackedUp(t, newMachine(t))
	restore := b.restore(b.store, "west")
	restore[slices.Index(restore, "--hsms")+1] = "3"
	b.ok(t, restore...)
	west := &testCluster{machine: b.machine, dir: b.path("west")}
	west.startAll(t)
	return &resolveWorld{b, west, recoverKeyring(t, b), 0x0123456789abcd00, map[string]string{}, len(b.references(t))}
}

// resolvedAfter plants a conflict, lets disturb run the command that decides it, in
// whatever way, runs the command until it is done, and checks what is left.
func (w *resolveWorld) resolvedAfter(t *testing.T, disturb func(command []string)) {
	t.Helper()
	w.next++
	ref := plantConflict(t, w.b, w.west, w.next)
	w.listed(t, ref)
	command := []string{"synckey", "resolve", "--src", w.b.dir, "--dst", w.west.dir, "--key", ref, "--keep", "dst", "--keep-both", "--yes"}
	disturb(command)
	eventually(t, "the conflict is not resolved", func() bool {
		var r struct {
			Resolved   bool
			RootsEqual bool `json:"roots_equal"`
		}
		out := w.b.admin().run(t, append(command, "--json")...)
		return out.code == 0 && json.Unmarshal([]byte(out.stdout), &r) == nil && r.Resolved && r.RootsEqual
	})
	gave, stands := recordOf(t, w.keyring, w.next, 0), recordOf(t, w.keyring, w.next, 1)
	w.want[ref] = string(stands.Material.Reveal())
	w.want[w.keyring.KeptRef(w.next, w.birthThatGave(t, ref)).String()] = string(gave.Material.Reveal())
	w.check(t)
}

// listed checks that synckey lists the conflict and nothing else.
func (w *resolveWorld) listed(t *testing.T, ref string) {
	t.Helper()
	var s synced
	out := w.b.run(t, "synckey", "--src", w.b.dir, "--dst", w.west.dir, "--json")
	if decode(t, out.stdout, &s); out.code != 3 || !slices.Equal(s.Conflicts, []string{ref}) || s.RootsEqual {
		t.Fatalf("before the decision: %+v: %v", s, out)
	}
}

// birthThatGave reads from the record of the decision which birth gave way.
func (w *resolveWorld) birthThatGave(t *testing.T, ref string) [16]byte {
	t.Helper()
	for _, rec := range w.records(t, w.west) {
		if rec.Ref.String() == ref && len(rec.Rivals) == 1 {
			return slices.Collect(maps.Keys(rec.Rivals))[0]
		}
	}
	t.Fatalf("nothing is written down of the decision on %s", ref)
	return [16]byte{}
}

// check demands equal roots of all HSMs, and of all conflicts so far two keys each.
func (w *resolveWorld) check(t *testing.T) {
	t.Helper()
	var s synced
	if w.b.json(t, &s, "synckey", "--src", w.b.dir, "--dst", w.west.dir); !s.RootsEqual || s.Remaining != 0 || len(s.Conflicts) != 0 {
		t.Fatalf("after the decision: %+v", s)
	}
	if a, b := w.b.testCluster.root(t), w.west.root(t); a != b {
		t.Fatalf("the roots are %s and %s", a, b)
	}
	for _, c := range []*testCluster{w.b.testCluster, w.west} {
		found := map[string]string{}
		for _, rec := range w.records(t, c) {
			if rec.Kind == hsm.KindKey && !rec.Destroyed {
				found[rec.Ref.String()] = string(rec.Material.Reveal())
			}
		}
		if len(found) != w.keys+len(w.want) {
			t.Errorf("%d keys in %s, want %d", len(found), c.dir, w.keys+len(w.want))
		}
		for ref, material := range w.want {
			if found[ref] != material {
				t.Errorf("key %s in %s is another one than the decision leaves", ref, c.dir)
			}
		}
		if i := c.info(t); i.InDoubt != 0 || i.UnderReplicated != 0 {
			t.Errorf("something is half done: %+v", i)
		}
	}
}

// records opens everything that a cluster holds.
func (w *resolveWorld) records(t *testing.T, c *testCluster) (out []*hsm.Record) {
	t.Helper()
	client := openAppliance(t, c)
	defer client.Close()
	ctx := context.Background()
	var refs []hsm.KeyRef
	for o, err := range client.Objects(ctx) {
		must(t, err)
		refs = append(refs, o.Ref)
	}
	for m, err := range client.Extract(ctx, slices.Values(refs)) {
		must(t, err)
		rec, err := w.keyring.Unmask(m)
		must(t, err)
		out = append(out, rec)
	}
	return out
}
