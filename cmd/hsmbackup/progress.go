package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress reports work that takes longer than a second on stderr: a line that
// is redrawn on a terminal, a line now and then otherwise, a JSON object a second
// with --json, nothing with --quiet. It is safe for concurrent use.
type progress struct {
	p        *program
	what     string
	terminal bool

	mu      sync.Mutex
	started time.Time
	next    time.Time
	shown   bool
}

func (p *program) progress(what string) *progress {
	f, isFile := p.err.(*os.File)
	now := time.Now()
	return &progress{p: p, what: what, terminal: isFile && term.IsTerminal(int(f.Fd())), started: now, next: now.Add(time.Second)}
}

// update notes that done of total objects and so many bytes are through; a
// total of 0 is unknown.
func (g *progress) update(done, total, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.p.quiet || now.Before(g.next) {
		return
	}
	g.shown = true
	elapsed := now.Sub(g.started).Seconds()
	rate, left := float64(bytes)/elapsed, -1.0
	if total > 0 && done > 0 {
		left = max(0, elapsed*float64(total-done)/float64(done))
	}
	if g.p.json {
		g.next = now.Add(time.Second)
		g.report(done, total, bytes, rate, left)
		return
	}
	pace := fmt.Sprintf("%s, %s/s", size(bytes), size(int64(rate)))
	if bytes == 0 {
		pace = fmt.Sprintf("%.0f/s", float64(done)/elapsed)
	}
	line := fmt.Sprintf("%s: %d objects, %s", g.what, done, pace)
	if left >= 0 {
		line = fmt.Sprintf("%s: %3d%%, %d of %d objects, %s, %s left", g.what, min(100, 100*done/total), done, total, pace,
			time.Duration(left*float64(time.Second)).Round(time.Second))
	}
	if g.terminal {
		g.next = now.Add(200 * time.Millisecond)
		fmt.Fprintf(g.p.err, "\r\033[K%s", line)
		return
	}
	g.next = now.Add(10 * time.Second)
	fmt.Fprintln(g.p.err, line)
}

// report is update with --json: one object a second on standard error. What is
// not known is left out.
func (g *progress) report(done, total, bytes int64, rate, left float64) {
	facts := []any{"what", g.what, "objects", done, "bytes", bytes, "bytes_per_second", int64(rate)}
	if total > 0 {
		facts = append(facts, "total_objects", total)
	}
	if left >= 0 {
		facts = append(facts, "seconds_left", int64(left+0.5))
	}
	g.p.event("progress", facts...)
}

// done ends the line on a terminal.
func (g *progress) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shown && g.terminal && !g.p.json {
		fmt.Fprint(g.p.err, "\r\033[K")
	}
}
