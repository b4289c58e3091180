package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestProgressWithJSON: one object a second on standard error, with bytes, objects, rate
// and time left; what is not known is left out; nothing before a second has passed, and nothing
// with --quiet.
func TestProgressWithJSON(t *testing.T) {
	for _, c := range []struct {
		name               string
		quiet, early       bool
		done, total, bytes int64
		want               []string
	}{
		{name: "all is known", done: 250, total: 1000, bytes: 5 << 20, want: []string{"bytes", "bytes_per_second", "event", "objects", "seconds_left", "time", "total_objects", "what"}},
		{name: "no total", done: 250, bytes: 5 << 20, want: []string{"bytes", "bytes_per_second", "event", "objects", "time", "what"}},
		{name: "nothing done", total: 1000, want: []string{"bytes", "bytes_per_second", "event", "objects", "time", "total_objects", "what"}},
		{name: "quiet", quiet: true, done: 250, total: 1000},
		{name: "within the first second", early: true, done: 250, total: 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			var errOut bytes.Buffer
			p := &program{streams: streams{in: strings.NewReader(""), out: io.Discard, err: &errOut}, log: slog.New(slog.DiscardHandler)}
			p.json, p.quiet = true, c.quiet
			g := p.progress("restore")
			if g.started = g.started.Add(-10 * time.Second); !c.early {
				g.next = time.Now()
			}
			g.update(c.done, c.total, c.bytes)
			g.update(c.done+1, c.total, c.bytes) // in the same second: not told
			g.done()
			checkProgress(t, errOut.Bytes(), c.want, c.done, c.total, c.bytes)
		})
	}
}

func checkProgress(t *testing.T, out []byte, want []string, done, total, size int64) {
	t.Helper()
	if want == nil {
		if len(out) > 0 {
			t.Fatalf("it says %s", out)
		}
		return
	}
	var event map[string]any
	d := json.NewDecoder(bytes.NewReader(out))
	if err := d.Decode(&event); err != nil || d.More() {
		t.Fatalf("not one JSON object: %s, %v", out, err)
	}
	for _, name := range want {
		if _, ok := event[name]; !ok {
			t.Errorf("%s is missing in %s", name, out)
		}
	}
	if len(event) != len(want) {
		t.Errorf("it says %s, want %v", out, want)
	}
	number := func(name string) int64 { f, _ := event[name].(float64); return int64(f) }
	if event["event"] != "progress" || event["what"] != "restore" || number("objects") != done || number("bytes") != size {
		t.Errorf("it says %s", out)
	}
	if rate := number("bytes_per_second"); rate > size/10 || rate < size/100 { // ten seconds, or somewhat more
		t.Errorf("a rate of %d", rate)
	}
	if left := number("seconds_left"); total > 0 && done > 0 && (left < 30 || left > 300) { // a quarter is done
		t.Errorf("%d seconds left", left)
	}
}

// TestProgressOfADrill: each count has its own rate, from when it begins, and what is not
// bytes is told as a number a second.
func TestProgressOfADrill(t *testing.T) {
	var errOut bytes.Buffer
	p := &program{streams: streams{in: strings.NewReader(""), out: io.Discard, err: &errOut}, log: slog.New(slog.DiscardHandler)}
	s := &drillSteps{p: p}
	s.begin("use every key")
	for range 2 {
		old := s.bar.Load()
		old.started = old.started.Add(-time.Hour)
		s.update(0, 1000, 0)
		bar := s.bar.Load()
		if bar == old {
			t.Fatal("a new count goes on with the time of the one before")
		}
		bar.started, bar.next = bar.started.Add(-10*time.Second), time.Now()
		s.update(500, 1000, 0)
	}
	s.end()
	lines := strings.Split(strings.TrimSpace(errOut.String()), "\n")
	if len(lines) != 3 || lines[0] != "drill: use every key" {
		t.Fatalf("it says %q", lines)
	}
	for _, line := range lines[1:] {
		var rate float64
		if _, err := fmt.Sscanf(line, "drill:  50%%, 500 of 1000 objects, %f/s, ", &rate); err != nil || rate > 50 || rate < 5 || strings.Contains(line, " B") {
			t.Errorf("it says %q: %v", line, err)
		}
	}
}
