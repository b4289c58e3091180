package integration

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// listed is snapshots --json.
type listed struct {
	Snapshots []listedSnapshot
	Total     int
	Deleted   int
}

type listedSnapshot struct {
	ID, State string
	Keep      bool
	DeleteAt  string `json:"delete_at"`
	Tags      map[string]string
	Verified  []struct {
		Level  string
		OK     bool
		Signed bool
	}
	Copy *struct{ Source, Copied string }
}

func (l listed) states() (out []string) {
	for _, s := range l.Snapshots {
		out = append(out, s.ID+" "+s.State)
	}
	return out
}

func (m *machine) listed(t *testing.T, store string, args ...string) (l listed) {
	t.Helper()
	m.json(t, &l, append([]string{"snapshots", store}, args...)...)
	return l
}

func wantStates(t *testing.T, l listed, want ...string) {
	t.Helper()
	if !slices.Equal(l.states(), want) {
		t.Fatalf("got %q, want %q", l.states(), want)
	}
}

// TestRetentionFromTheCommandLine is a snapshot's life: kept, deleted, had back,
// pruned.
func TestRetentionFromTheCommandLine(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	m, store := b.nobody(), b.store
	const first, second = "0000000001", "0000000002"
	t.Run("refusals", func(t *testing.T) {
		for _, days := range []string{"6", "380", "0", "-7"} {
			if line := m.refused(t, 2, "invalid usage", "snapshots", "prune", store, "--retention-days", days); !strings.Contains(line, "7 to 379") {
				t.Error(line)
			}
		}
		m.refused(t, 2, "invalid", "snapshots", "prune", store, "--keep-last", "0")
		m.refused(t, 2, "usage", "snapshots", "prune", store, "--keep-last", "many")
		m.refused(t, 2, "invalid", "snapshots", "prune", store, "--keep-within", "1w")
		m.refused(t, 2, "usage", "snapshots", "delete", store)
		m.refused(t, 2, "usage", "snapshots", "verify", store, "--keep-last", "3")
		m.refused(t, 4, "retention", "snapshots", "delete", store, second) // the last one
		m.refused(t, 1, "backup", "snapshots", "delete", store, "77")
	})
	m.ok(t, "snapshots", "keep", store, first)
	m.refused(t, 4, "retention", "snapshots", "delete", store, first)
	m.ok(t, "snapshots", "keep", store, first, "--no-keep")
	m.ok(t, "snapshots", "delete", store, first)
	l := m.listed(t, store)
	if wantStates(t, l, first+" PENDING_DELETION", second+" READY"); l.Snapshots[0].DeleteAt == "" {
		t.Fatalf("%+v", l)
	}
	m.ok(t, "snapshots", "undelete", store, first)
	wantStates(t, m.listed(t, store), first+" READY", second+" READY")

	var done struct {
		DryRun bool `json:"dry_run"`
		Plan   struct {
			Snapshots []struct{ ID, Action string }
		}
		Done struct{ Marked, Removed, Skipped, Locked []string }
	}
	var forecast struct {
		Snapshots []struct{ ID, State, Gone string }
	}
	m.json(t, &forecast, "snapshots", "forecast", store, "--keep-last", "1", "--every", "1h")
	if len(forecast.Snapshots) != 2 || forecast.Snapshots[0].Gone == "" || forecast.Snapshots[1].Gone == "" {
		t.Fatalf("%+v", forecast)
	}
	before := names(t, store)
	m.json(t, &done, "snapshots", "prune", store, "--keep-last", "1", "--dry-run")
	if !done.DryRun || len(done.Plan.Snapshots) != 2 || done.Plan.Snapshots[0].Action != "delete" || done.Plan.Snapshots[1].Action != "keep" {
		t.Fatalf("%+v", done)
	}
	if !slices.Equal(names(t, store), before) {
		t.Fatal("a dry run changed the store")
	}
	m.json(t, &done, "snapshots", "prune", store)
	if len(done.Done.Marked) != 0 {
		t.Fatalf("younger than 90 days: %+v", done)
	}
	m.json(t, &done, "snapshots", "prune", store, "--keep-last", "1")
	if wantStates(t, m.listed(t, store), first+" PENDING_DELETION", second+" READY"); !slices.Equal(done.Done.Marked, []string{first}) {
		t.Fatalf("%+v", done)
	}
	if text := m.ok(t, "snapshots", "prune", store, "--keep-last", "1", "--now", "--grace", "0s"); !strings.Contains(text, "1 removed; 0 objects removed") {
		t.Fatal(text) // the increment needs the first one's packs
	}
	if l = m.listed(t, store); l.Deleted != 1 {
		t.Fatalf("%+v", l)
	}
	wantStates(t, l, second+" READY")
	wantStates(t, m.listed(t, store, "--deleted"), first+" DELETED", second+" READY")
	b.nobody().ok(t, b.restore(store, "west")...)
}

// names lists the files below a folder.
func names(t *testing.T, folder string) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"*/*", "*/*/*"} {
		files, err := filepath.Glob(filepath.Join(folder, pattern))
		must(t, err)
		out = append(out, files...)
	}
	return out
}

func TestVerificationsAreRecorded(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	m, store := b.nobody(), b.store
	var one struct {
		OK       bool
		Recorded bool
		Turn     uint64
		Packs    int
		Checked  int `json:"packs_checked"`
		KeysUsed int `json:"keys_used"`
		Sample   []string
	}
	m.json(t, &one, "snapshots", "verify", store, "--level", "use", "--identity", b.identity)
	if !one.OK || !one.Recorded || one.KeysUsed != 2 || one.Checked != one.Packs {
		t.Fatalf("%+v", one)
	}
	chosen := map[string]bool{}
	used := 0
	for _, turn := range []string{"0", "1"} {
		m.json(t, &one, "snapshots", "verify", store, "--level", "use", "--identity", b.identity, "--sample", "50%", "--turn", turn)
		if !one.OK || len(one.Sample) != 1 || one.Checked != 1 || one.Packs != 2 {
			t.Fatalf("%+v", one)
		}
		chosen[one.Sample[0]] = true
		used += one.KeysUsed
	}
	if len(chosen) != 2 || used != 2 {
		t.Fatalf("two turns of half used %d keys of %d packs", used, len(chosen))
	}
	var all struct {
		OK        bool
		Snapshots []struct {
			ID       string
			OK       bool
			Recorded bool
		}
	}
	m.json(t, &all, "snapshots", "verify", store, "--all")
	if !all.OK || len(all.Snapshots) != 2 || !all.Snapshots[0].Recorded {
		t.Fatalf("%+v", all)
	}
	l := m.listed(t, store)
	if len(l.Snapshots[0].Verified) != 1 || len(l.Snapshots[1].Verified) != 4 || !l.Snapshots[1].Verified[0].Signed || l.Snapshots[1].Verified[3].Signed {
		t.Fatalf("%+v", l)
	}
	text := m.ok(t, "snapshots", "show", store, "0000000002")
	if !strings.Contains(text, "verified ") || !strings.Contains(text, " use, 1 of 2 packs, signed\n") || !strings.Contains(text, " hashes\n") {
		t.Fatal(text)
	}
	flipBit(t, filepath.Join(store, newestFile(t, store, "packs")))
	if r := m.run(t, "snapshots", "verify", store, "--all", "--json"); r.code != 3 {
		t.Fatalf("%v", r)
	}
	if l = m.listed(t, store); l.Snapshots[1].Verified[4].OK {
		t.Fatalf("%+v", l)
	}
}
