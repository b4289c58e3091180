package clone

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
	"github.com/hsmbackup/hsmbackup/cluster/keytest"
)

func drillOptions(t *testing.T) DrillOptions {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return DrillOptions{Executable: exe, Store: newVault(t).store, Dir: t.TempDir(), Keys: 5, HSMs: 2, Version: "test", iterations: testIterations}
}

// TestADrillPasses with HSMs as processes, keys of every type, and the report
// that comes of it.
func TestADrillPasses(t *testing.T) {
	t.Parallel()
	o := drillOptions(t)
	var steps []string
	o.Step = func(what string) { steps = append(steps, what) }
	counts := countSteps(&o)
	d, err := newDrill(o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Drill(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK || len(r.Proof.Failures) != 0 || !r.Proof.RootsEqual || len(steps) != len(d.steps()) {
		t.Fatalf("%d steps, report %+v", len(steps), r)
	}
	// Three of the keys are made by unwrapping and two by import, of which one is
	// destroyed; pairs count twice.
	if r.Proof.KeysUsed < 5+25+2*len(everyType())-4-3 || uint64(r.Proof.KeysUsed) != r.Clone.Keys || r.Source.Keys != r.Clone.Keys || r.Source.Root != r.Clone.Root {
		t.Errorf("report %+v", r)
	}
	if r.Source.Cluster == r.Clone.Cluster || r.Synckey.Missing == 0 || r.Synckey.Changed == 0 || r.Synckey.Destroyed != 2 || r.Snapshot.Objects == 0 || r.RTOSeconds <= 0 {
		t.Errorf("report %+v", r)
	}
	if err := r.Verify(r.Lineage); err != nil {
		t.Errorf("signature: %v", err)
	}
	for _, what := range []string{"make users and keys of every type", "use every key", "take a snapshot", "restore it as region two", "prove it: roots, check values, every key used"} {
		if c := counts[what]; c == nil || c.done != c.total || c.total == 0 {
			t.Errorf("%s: told of %+v, want all of them", what, c)
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []person{d.people.root, d.people.alice} {
		if strings.Contains(string(b), string(p.password.Reveal())) {
			t.Error("the report holds a password")
		}
	}
}

// count is the furthest that a step told of its last count.
type count struct{ done, total int64 }

// countSteps notes what each step tells. Calls overtake each other, so the most counts.
func countSteps(o *DrillOptions) map[string]*count {
	counts, step, now := map[string]*count{}, o.Step, ""
	var mu sync.Mutex
	o.Step = func(what string) {
		mu.Lock()
		defer mu.Unlock()
		now = what
		step(what)
	}
	o.Progress = func(done, total, _ int64) {
		mu.Lock()
		defer mu.Unlock()
		if c := counts[now]; c == nil || c.total != total || c.done < done {
			counts[now] = &count{done, total}
		}
	}
	return counts
}

// spoils are what may go wrong between synckey and the proof, and what the report
// says then. They add up.
var spoils = []struct {
	name  string
	spoil func(t *testing.T, d *drill) (names string)
	says  string
}{
	{"an answer that is another", func(t *testing.T, d *drill) string {
		i := slices.IndexFunc(d.answers, func(a answer) bool { return a.key.Class == hsm.ClassPublic })
		d.answers[i].given = []byte("another public key")
		return d.answers[i].key.Ref.String()
	}, keytest.ErrAnswer.Error()},
	{"a key that does not decrypt", func(t *testing.T, d *drill) string {
		i := slices.IndexFunc(d.answers, func(a answer) bool { return a.key.Type == "aes" })
		d.answers[i].given[len(d.answers[i].given)-1] ^= 1
		return d.answers[i].key.Ref.String()
	}, "cryptographic operation failed"},
	{"a destroyed key that lives", func(t *testing.T, d *drill) string {
		d.gone = append(d.gone, d.alices(t).Ref)
		return d.alices(t).Ref.String()
	}, "was destroyed in region one and answers in region two"},
	{"a session key that travelled", func(t *testing.T, d *drill) string {
		d.session = d.alices(t).Ref
		return d.session.String()
	}, "session key"},
	{"an attribute that is another", func(t *testing.T, d *drill) string {
		change(t, d.two.users["alice"], hsm.Change{Kind: hsm.ChangeAttribute, Ref: d.alices(t).Ref, Name: "label", Value: "other"})
		return d.alices(t).Ref.String()
	}, "has other attributes in region two"},
	{"a key too many", func(t *testing.T, d *drill) string {
		made, err := d.two.users["alice"].Create(t.Context(), bulk("extra", 1)[0], cluster.Policy{})
		if err != nil {
			t.Fatal(err)
		}
		return made.Keys[0].Ref.String()
	}, "is in region two only"},
	{"a key that is missing", func(t *testing.T, d *drill) string {
		change(t, d.two.users["alice"], hsm.Change{Kind: hsm.ChangeDestroy, Ref: d.alices(t).Ref})
		return d.alices(t).Ref.String()
	}, "is not in region two"},
	{"a user who cannot log in", func(t *testing.T, d *drill) string {
		if err := d.two.users["carol"].Close(); err != nil {
			t.Fatal(err)
		}
		delete(d.two.users, "carol")
		d.people.carol.password = secret("forgotten-it")
		return "carol"
	}, "cannot log in"},
}

// alices returns a key of alice's.
func (d *drill) alices(t *testing.T) hsm.KeyInfo {
	t.Helper()
	i := slices.IndexFunc(d.answers, func(a answer) bool { return a.user == "alice" && a.key.Class == hsm.ClassSecret })
	return d.answers[i].key
}

// TestADrillFindsFaults: what goes wrong in region two after synckey is named.
func TestADrillFindsFaults(t *testing.T) {
	t.Parallel()
	d := atTheProof(t)
	proven := func(t *testing.T) *Report {
		t.Helper()
		d.report = newReport("test")
		if err := errors.Join(d.prove(t.Context()), d.finish(t.Context())); err != nil {
			t.Fatal(err)
		}
		if err := d.report.Verify(d.one.profile.Lineage); err != nil {
			t.Errorf("signature: %v", err)
		}
		return d.report
	}
	if r := proven(t); !r.OK || uint64(r.Proof.KeysUsed) != r.Source.Keys {
		t.Fatalf("before anything is spoilt: %+v", r)
	}
	for _, c := range spoils {
		t.Run(c.name, func(t *testing.T) {
			names := c.spoil(t, d)
			r := proven(t)
			named := slices.ContainsFunc(r.Proof.Failures, func(f string) bool { return strings.Contains(f, names) && strings.Contains(f, c.says) })
			if r.OK || !named {
				t.Errorf("OK %t, doubts %q; want one that names %s and says %q", r.OK, r.Proof.Failures, names, c.says)
			}
		})
	}
}

func change(t *testing.T, c *cluster.Cluster, ch hsm.Change) {
	t.Helper()
	if _, err := c.Change(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
}

// atTheProof carries a small drill to the point where it is to be proven.
func atTheProof(t *testing.T) *drill {
	t.Helper()
	o := drillOptions(t)
	o.HSMs, o.Keys = 1, 1
	d, err := newDrill(o)
	if err != nil {
		t.Fatal(err)
	}
	// All that the later steps look for, and RSA in one size only.
	d.types = slices.DeleteFunc(d.types, func(r hsm.CreateRequest) bool { return r.Type == "rsa" && r.Size > 2048 })
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range d.steps() {
		if s.what == "prove it: roots, check values, every key used" {
			return d
		}
		if err := s.run(t.Context()); err != nil {
			t.Fatalf("%s: %v", s.what, err)
		}
	}
	t.Fatal("no proof")
	return nil
}

func TestADrillThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	o := drillOptions(t)
	o.Executable = "/nothing/here"
	if r, err := Drill(t.Context(), o); r != nil || err == nil || !strings.Contains(err.Error(), "start region one") {
		t.Errorf("got %v, %v", r, err)
	}
}

// TestASnapshotIsDrilled: restored in an isolated place, every key used, and held
// against the live cluster.
func TestASnapshotIsDrilled(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 2)
	first, second := east.key("alice", "first"), east.key("bob", "second")
	s := east.snapshot(v)
	later := east.key("alice", "later")
	east.change("alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: first, Name: "label", Value: "renamed"})
	east.destroy("bob", second)
	if err := east.auto.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	r, err := DrillSnapshot(t.Context(), s, v.spec(t, "drill", 2), east.auto)
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK || r.Proof.KeysUsed != 2 || r.Proof.KCVChecked != 2 || !r.Proof.RootsEqual || r.Clone.Keys != 2 || r.Source.HSMs != 2 || r.RTOSeconds <= 0 {
		t.Errorf("report %+v", r)
	}
	if r.Synckey.Missing != 1 || r.Synckey.Changed != 2 {
		t.Errorf("the live cluster has %d more and %d changed, want 1 (%s) and 2", r.Synckey.Missing, r.Synckey.Changed, later)
	}
	if err := r.Verify(east.profile.Lineage); err != nil {
		t.Errorf("signature: %v", err)
	}
}

// TestADrilledSnapshotKnowsMore: a live cluster that was set back is a doubt.
func TestADrilledSnapshotKnowsMore(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 1)
	renamed, gone := east.key("alice", "renamed"), east.key("alice", "gone")
	old := east.snapshot(v)
	lost := east.key("alice", "lost")
	east.change("alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: renamed, Name: "label", Value: "new name"})
	east.destroy("alice", gone)
	west := v.restoreAndStart(t, old, 1) // as east was
	r, err := DrillSnapshot(t.Context(), east.snapshot(v), v.spec(t, "drill", 1), west.auto)
	if err != nil {
		t.Fatal(err)
	}
	doubts := strings.Join(r.Proof.Failures, "\n")
	for ref, says := range map[hsm.KeyRef]string{renamed: "newer state", gone: "destroyed in the snapshot", lost: "live in the snapshot"} {
		if !strings.Contains(doubts, ref.String()+" is") || !strings.Contains(doubts, says) {
			t.Errorf("doubts\n%s\nwant one on %s that says %q", doubts, ref, says)
		}
	}
	if r.OK || len(r.Proof.Failures) != 3 {
		t.Errorf("OK %t with doubts\n%s", r.OK, doubts)
	}
}

// TestADrillDoubtsBadSnapshots: keys that do not work, and states that have not
// settled.
func TestADrillDoubtsBadSnapshots(t *testing.T) {
	t.Parallel()
	t.Run("a key that does not work", func(t *testing.T) {
		v := newVault(t)
		m := newMemory(t, v, 1)
		m.everyKey(t)
		bad := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
		bad.Core.Check = []byte{1, 2, 3}
		insert(t, m.hsms[0], mask(t, m.keyring, bad))
		r, err := DrillSnapshot(t.Context(), v.take(t, m), v.spec(t, "drill", 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.OK || !r.Proof.RootsEqual || !strings.Contains(strings.Join(r.Proof.Failures, "\n"), bad.Ref.String()) {
			t.Errorf("report %+v", r)
		}
	})
	t.Run("unsettled", func(t *testing.T) {
		v := newVault(t)
		_, s, _ := unsettled(t, v)
		r, err := DrillSnapshot(t.Context(), s, v.spec(t, "drill", 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.OK || r.Proof.RootsEqual || len(r.Proof.Failures) != 1 || !strings.Contains(r.Proof.Failures[0], "several states") || uint64(r.Proof.KeysUsed) != s.Summary().Keys {
			t.Errorf("report %+v", r)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		v := newVault(t)
		m := newMemory(t, v, 1)
		m.everyKey(t)
		s := v.take(t, m)
		flipPack(t, v)
		if _, err := DrillSnapshot(t.Context(), v.open(t, s.ID()), v.spec(t, "drill", 1), nil); !errors.Is(err, backup.ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})
}
