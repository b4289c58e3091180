package sim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// maxGrown bounds the HSMs of a region.
const maxGrown = 6

// visitor is a client that comes for one thing.
type visitor struct {
	*cluster.Cluster
	end    *endpoint
	ctx    context.Context
	cancel context.CancelFunc
}

func (v *visitor) leave() {
	v.cancel()
	_ = v.Close()
	v.end.die()
}

func (r *region) openAs(ctx context.Context, end *endpoint) (*cluster.Cluster, error) {
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) { return r.w.net.dial(end, m) }
	return cluster.Open(ctx, r.profile(), cluster.Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(password)}, cluster.WithDialer(dial))
}

// move changes the members in the middle of a storm: one joins, or two try to with one
// token; one is removed, or several at once, or one while another is invited; one that was
// removed comes back; or a folder is copied. Admins die in the middle of it.
func (n *nemesis) move(d *dice) {
	n.moves++
	name := fmt.Sprintf("mover.%d-%d", n.round, n.moves)
	dies := time.Duration(0)
	if d.hit(250) {
		dies = d.between(0, 2*time.Second)
	}
	switch what := d.n(100); {
	case what < 20 || n.r.w.plant == countLeaver:
		n.shrinkAtOnce(name, d)
	case what < 30:
		n.shrink(name+"s", d, dies)
		n.grow(name, d, 0)
	case what < 55:
		n.grow(name, d, dies)
	case what < 75:
		n.shrink(name, d, dies)
	case what < 90:
		n.comeBack(d)
	default:
		n.double(d)
	}
}

func (n *nemesis) grow(name string, d *dice, dies time.Duration) {
	if len(n.r.members()) >= maxGrown {
		return
	}
	joiners := 1
	if d.hit(300) {
		joiners = 2
	}
	n.pending.Go(func() {
		boxes, err := n.r.invited(name, joiners, 0, dies)
		if err != nil {
			return
		}
		for i, b := range boxes {
			d := n.r.w.dice("joiner", b.name)
			n.pending.Go(func() {
				if i == 0 || wait(d.between(0, 20*time.Second), n.over) {
					b.enter(d, n.over)
				}
			})
		}
	})
}

// shrink removes an HSM, one at a time. By force it may take with it what only it holds.
func (n *nemesis) shrink(name string, d *dice, dies time.Duration) {
	boxes := n.r.members()
	if n.shrinking.Load() || len(boxes) <= max(2, n.r.copies()) {
		return
	}
	b, force := boxes[d.n(len(boxes))], false
	if n.lost < n.r.copies()-1 && d.hit(300) {
		n.lost++
		force = true
	}
	n.shrinking.Store(true)
	n.pending.Go(func() {
		defer n.shrinking.Store(false)
		_ = n.r.removes(name, b, force, dies) // what is half done is ended in calm
	})
}

// shrinkAtOnce removes several HSMs at the same time, each by an admin of its own, who may
// die. Now and then the others are cut off, and what is made meanwhile is on those alone.
func (n *nemesis) shrinkAtOnce(name string, d *dice) {
	boxes, k := n.r.members(), 2
	if d.hit(400) {
		k = 3
	}
	if n.shrinking.Load() || len(boxes) <= k {
		return
	}
	first := d.n(len(boxes))
	boxes = slices.Concat(boxes[first:], boxes[:first])
	if d.hit(600) || n.r.w.plant == countLeaver {
		n.seclude(boxes[:k], boxes[k:], d)
	}
	n.r.w.count(func(s *stats) { s.kinds["removed at once"]++ })
	n.shrinking.Store(true)
	begins := d.between(time.Second, 10*time.Second)
	var all sync.WaitGroup
	for i, b := range boxes[:k] {
		after, dies := begins+d.between(0, 300*time.Millisecond), time.Duration(0)
		if d.hit(100) && n.r.w.plant == nothing {
			dies = d.between(0, 2*time.Second)
		}
		all.Go(func() {
			if wait(after, n.over) {
				_ = n.r.removes(fmt.Sprintf("%s%c", name, 'a'+i), b, false, dies)
			}
		})
	}
	n.pending.Go(func() {
		all.Wait()
		n.shrinking.Store(false)
	})
}

// seclude cuts HSMs off from some others, and from all callers and admins, for a while.
func (n *nemesis) seclude(some, others []*box, d *dice) {
	from := []string{n.r.name + "/mover"}
	for _, b := range some {
		from = append(from, b.name)
	}
	for _, c := range n.callers.all {
		from = append(from, c.name)
	}
	each := func(f func(a, b string)) {
		for _, a := range from {
			for _, b := range others {
				f(a, b.name)
			}
		}
	}
	each(func(a, b string) { n.cut(a, b, 0) })
	n.later(d.between(10*time.Second, time.Minute), func() { each(n.mend) })
}

// comeBack starts an HSM again that was removed.
func (n *nemesis) comeBack(d *dice) {
	if gone := n.r.formerly(); len(gone) > 0 {
		b := gone[d.n(len(gone))]
		b.w.count(func(s *stats) { s.kinds["came back"]++ })
		n.restart(b, d)
	}
}

// double copies an HSM's folder while it runs, and runs the copy as well, for a while.
func (n *nemesis) double(d *dice) {
	boxes := n.r.members()
	b := boxes[d.n(len(boxes))]
	if n.lost >= n.r.copies()-1 {
		return
	}
	n.lost++ // what the copy acknowledges goes with it
	copied := b.copy()
	if copied == nil {
		return
	}
	n.pending.Go(func() {
		copied.start(0)
		wait(d.between(time.Second, 20*time.Second), n.over)
		copied.lose()
	})
}

// formerly lists the HSMs that were removed, and whose disks are still there.
func (r *region) formerly() (out []*box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.boxes {
		if b.removed() && !b.gone.Load() && !b.isCopy && (b.stage.get() == belongs || b.entered() != "") {
			out = append(out, b)
		}
	}
	return out
}

// copy is a second machine with the folder of an HSM that runs, at another address. Nil
// if it does not run.
func (b *box) copy() *box {
	b.mu.Lock()
	if b.disk == nil || b.server == nil {
		b.mu.Unlock()
		return nil
	}
	image, folder, sub, log := b.disk.CrashClone(vfs.CrashCloneCfg{}), b.folder, b.sub, b.audit
	b.mu.Unlock()
	c := b.region.newBox(func(c *box) {
		m := b.member()
		m.Address, m.Zone = c.member().Address, c.member().Zone
		c.said.Store(&m)
		c.isCopy, c.image, c.audit, c.sub, c.folder = true, image, log, sub, filepath.Join(b.w.dir, c.name+".0")
	})
	if err := copyFolder(folder, c.folder); err != nil {
		b.w.violate("%s: %v", c.name, err)
		return nil
	}
	config := filepath.Join(c.folder, c.sub, "hsm.yaml")
	text, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, []byte(strings.ReplaceAll(string(text), b.member().Address, c.member().Address)), 0o600)
	}
	if err != nil {
		b.w.violate("%s: %v", c.name, err)
		return nil
	}
	b.w.trace.add("%s is a copy of %s", c.name, b.name)
	b.w.count(func(s *stats) { s.kinds["copied"]++ })
	return c
}

func newImage() *vfs.MemFS { return vfs.NewCrashableMem() }
