package integration

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
)

// storeDelay makes every verb below work for longer than a second before it is done: each asks
// the store at least a few times, one after the other.
const storeDelay = 400 * time.Millisecond

// TestProgressOfEachVerb: work that takes longer than a second reports, with --json, one
// object now and then on standard error, which says what it is about, how much is done, of
// how much, and how fast; standard output is the result and nothing else. With --quiet
// there is none.
func TestProgressOfEachVerb(t *testing.T) {
	t.Parallel()
	minio := miniotest.Start(t)
	minio.CreateBucket("backups")
	b := newBackedUp(t, newMachine(t))
	slow := newFaultyStore(t, minio)
	m := b.nobody().with(minio.Env()...)
	here, there := slow.location("backups/here"), slow.location("backups/there")
	m.ok(t, "snapshot", "--to", here)
	b.generate(t, "one-more")
	slowly := func(http.ResponseWriter, *http.Request) bool { time.Sleep(storeDelay); return false }
	slow.set(slowly)

	for _, v := range []struct {
		what   string
		before func()
		args   []string
	}{
		{what: "snapshot", args: []string{"snapshot", "--to", here}},
		{what: "verify", args: []string{"snapshots", "verify", here, "--level", "root", "--identity", b.identity, "--no-record"}},
		{what: "restore", args: b.restore(here, "west")},
		{what: "copy", args: []string{"snapshots", "copy", "--from", here, "--to", there, "--all"}},
		{what: "prune", args: []string{"snapshots", "prune", here, "--keep-last", "1", "--now", "--grace", "0s"}, before: func() {
			slow.set(nil)
			defer slow.set(slowly)
			m.ok(t, "snapshot", "--to", here, "--full")
			m.ok(t, "snapshots", "prune", here, "--keep-last", "1")
		}},
	} {
		t.Run(v.what, func(t *testing.T) {
			if v.before != nil {
				v.before()
			}
			r := m.run(t, append(v.args, "--json")...)
			if r.code != 0 {
				t.Fatalf("exit code %d: %v", r.code, r)
			}
			var result any
			decode(t, r.stdout, &result)
			checkEvents(t, v.what, r.stderr)
		})
	}
	t.Run("quiet", func(t *testing.T) {
		r := m.run(t, "snapshots", "verify", here, "--level", "root", "--identity", b.identity, "--no-record", "--json", "--quiet")
		if r.code != 0 || r.stderr != "" {
			t.Fatalf("exit code %d: %v", r.code, r)
		}
	})
}

// progressEvent is one line of progress.
type progressEvent struct {
	Time, Event, What string
	Objects, Bytes    int64
	Rate              *int64 `json:"bytes_per_second"`
	Total             int64  `json:"total_objects"`
	Left              int64  `json:"seconds_left"`
}

// checkEvents demands one event about this at least, that all lines are events, and that
// what is done only grows.
func checkEvents(t *testing.T, what, stderr string) {
	t.Helper()
	var events []progressEvent
	for line := range strings.Lines(stderr) {
		var e progressEvent
		d := json.NewDecoder(strings.NewReader(line))
		if err := d.Decode(&e); err != nil || d.More() {
			t.Fatalf("not one JSON object a line: %q, %v", line, err)
		}
		if e.Event != "progress" {
			continue // other things that happen have their lines, too
		}
		if at, err := time.Parse(time.RFC3339, e.Time); err != nil || time.Since(at) > deadline {
			t.Errorf("at %q: %s", e.Time, line)
		}
		if e.Rate == nil || e.Objects < 0 || e.Bytes < 0 || e.Left < 0 || e.Total > 0 && e.Objects > e.Total {
			t.Errorf("it says %s", line)
		}
		if e.What == what {
			events = append(events, e)
		}
	}
	if len(events) == 0 || events[len(events)-1].Objects == 0 {
		t.Fatalf("no progress of %s: %s", what, stderr)
	}
	if !slices.IsSortedFunc(events, func(a, b progressEvent) int { return int(a.Objects - b.Objects) }) {
		t.Errorf("what is done shrinks: %s", stderr)
	}
}
