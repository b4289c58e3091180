package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress reports work that takes longer than a second on stderr: a line that
// is redrawn on a terminal, a line now and then otherwise, nothing with
// --quiet. It is safe for concurrent use.
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
	line := fmt.Sprintf("%s: %d objects, %s, %s/s", g.what, done, size(bytes), size(int64(float64(bytes)/elapsed)))
	if total > 0 && done > 0 {
		left := time.Duration(elapsed * float64(total-done) / float64(done) * float64(time.Second))
		line = fmt.Sprintf("%s: %3d%%, %d of %d objects, %s/s, %s left", g.what, 100*done/total, done, total, size(int64(float64(bytes)/elapsed)), left.Round(time.Second))
	}
	if g.terminal {
		g.next = now.Add(200 * time.Millisecond)
		fmt.Fprintf(g.p.err, "\r\033[K%s", line)
		return
	}
	g.next = now.Add(10 * time.Second)
	fmt.Fprintln(g.p.err, line)
}

// done ends the line on a terminal.
func (g *progress) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shown && g.terminal {
		fmt.Fprint(g.p.err, "\r\033[K")
	}
}
