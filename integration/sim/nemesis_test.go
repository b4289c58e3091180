package sim

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// nemesis is what goes wrong in one round.
type nemesis struct {
	r         *region
	callers   *callers
	synckey   *agent // nil: there is one region
	round     int
	lost      int // HSMs whose disks were lost for good in this round
	moves     int
	shrinking atomic.Bool // an HSM is being removed
	pending   sync.WaitGroup
	over      chan struct{}
}

func newNemesis(r *region, cs *callers, synckey *agent, round int) *nemesis {
	return &nemesis{r: r, callers: cs, synckey: synckey, round: round, over: make(chan struct{})}
}

// rage lets things go wrong for a while.
func (n *nemesis) rage(d time.Duration) {
	w := n.r.w
	until := time.Now().Add(d)
	for step := 0; time.Now().Before(until) && !w.failed(); step++ {
		d := w.dice("nemesis", n.r.name, fmt.Sprint(n.round), fmt.Sprint(step))
		time.Sleep(d.between(500*time.Millisecond, 10*time.Second))
		n.strike(d)
	}
}

// strike lets one thing go wrong.
func (n *nemesis) strike(d *dice) {
	w := n.r.w
	boxes := n.r.members()
	b := boxes[d.n(len(boxes))]
	w.count(func(s *stats) { s.faults++ })
	if w.plant == countLeaver || !w.still && d.hit(180) {
		n.move(d)
		return
	}
	switch what := d.n(100); {
	case what < 15:
		b.kill()
		n.restart(b, d)
	case what < 40:
		b.setFuse(1 + d.n(60)*d.n(4))
		n.restart(b, d)
	case what < 50:
		n.partition(b, d)
	case what < 66 && n.synckey != nil && d.hit(300):
		n.synckey.cut(n, d)
	case what < 66:
		n.cutOff(b, d)
	case what < 73:
		n.jump(b, d)
	case what < 80:
		n.fill(b, d)
	case what < 85:
		b.remember()
	case what < 89:
		if n.lost < n.r.copies()-1 && b.rollBack() {
			n.lost++
			w.checker.safe(n.r)
			n.restart(b, d)
		}
	case what < 92:
		if n.lost < n.r.copies()-1 && len(boxes) > n.r.copies() {
			n.lost++
			b.lose()
			w.checker.safe(n.r)
		}
	default:
		c := n.callers.all[d.n(len(n.callers.all))]
		c.die()
	}
}

// later does something after a while, unless the storm is over by then.
func (n *nemesis) later(after time.Duration, f func()) {
	n.pending.Go(func() {
		select {
		case <-time.After(after):
			f()
		case <-n.over:
		}
	})
}

// restart starts an HSM after a while; it may lose power again as it starts.
func (n *nemesis) restart(b *box, d *dice) {
	fuse := 0
	if d.hit(250) {
		fuse = 1 + d.n(40)
	}
	n.later(d.between(100*time.Millisecond, 15*time.Second), func() { b.start(fuse) })
}

// partition cuts an HSM off from its peers, in one direction or both.
func (n *nemesis) partition(b *box, d *dice) {
	way := d.n(3)
	for _, p := range n.r.members() {
		if p != b {
			n.cut(p.name, b.name, way)
		}
	}
	n.later(d.between(time.Second, 30*time.Second), func() {
		for _, p := range n.r.members() {
			n.mend(p.name, b.name)
		}
	})
}

// cutOff cuts an HSM, or most of them, off from one caller or all, now and then for
// longer than a creation's lease: what they began there, others have to end.
func (n *nemesis) cutOff(b *box, d *dice) {
	callers, cut := n.callers.all, []*box{b}
	if d.hit(500) {
		i := d.n(len(callers))
		callers = callers[i : i+1]
	}
	if d.hit(500) {
		for _, p := range n.r.members() {
			if p != b && !d.hit(250) {
				cut = append(cut, p)
			}
		}
	}
	way := d.n(3)
	each := func(f func(caller, box string)) {
		for _, c := range callers {
			for _, p := range cut {
				f(c.name, p.name)
			}
		}
	}
	each(func(caller, box string) { n.cut(caller, box, way) })
	n.later(d.between(time.Second, 2*time.Minute), func() { each(n.mend) })
}

func (n *nemesis) cut(a, b string, way int) {
	if way != 1 {
		n.r.w.net.setCut(a, b, true)
	}
	if way != 2 {
		n.r.w.net.setCut(b, a, true)
	}
}

func (n *nemesis) mend(a, b string) {
	n.r.w.net.setCut(a, b, false)
	n.r.w.net.setCut(b, a, false)
}

// maxSkew is how far clocks are off.
const maxSkew = 8 * time.Minute

// jump sets an HSM's clock wrong by minutes.
func (n *nemesis) jump(b *box, d *dice) {
	skew := d.between(0, 2*maxSkew) - maxSkew
	b.skew.Store(int64(skew))
	n.r.ahead = max(n.r.ahead, skew)
	n.r.w.trace.add("the clock of %s is off by %s", b.name, skew)
}

// fill fills a disk for a while.
func (n *nemesis) fill(b *box, d *dice) {
	b.setFull(noSpaceSoon)
	n.later(d.between(time.Second, 20*time.Second), func() { b.setFull(0) })
}

// stop ends the storm: nothing more goes wrong.
func (n *nemesis) stop() {
	close(n.over)
	n.pending.Wait()
}

// wake mends all HSMs and starts those that are down.
func (r *region) wake() {
	for _, b := range r.everyone() {
		b.skew.Store(0)
		b.setFull(0)
		b.setFuse(0)
	}
	for _, b := range r.members() {
		b.start(0)
	}
}

// setFuse lets an HSM crash after some more steps of its disk.
func (b *box) setFuse(steps int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil {
		b.disk.fuse.Store(int64(steps))
		b.w.trace.add("%s will crash after %d steps", b.name, steps)
	}
}

func (b *box) setFull(how int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil {
		b.disk.full.Store(how)
		b.w.trace.add("the disk of %s is full: %d", b.name, how)
	}
}
