package sim

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// agent runs synckey between two regions, over the WAN, with the credentials of
// an appliance. It is in the first region, and may die in the middle of a run.
type agent struct {
	w        *world
	src, dst *region
	life     int
	end      atomic.Pointer[endpoint]
}

func newAgent(src, dst *region) *agent { return &agent{w: src.w, src: src, dst: dst} }

// machine is where it runs.
func (a *agent) machine() string { return a.src.name + "/synckey" }

// everything is both ways, with users and destructions.
var everything = synckey.Options{Both: true, Destroyed: true, Users: true, MaxDestroyed: synckey.Unlimited()}

// run reconciles once.
func (a *agent) run(o synckey.Options) (*synckey.Result, error) {
	a.life++
	end := newEndpoint(fmt.Sprintf("%s.%d", a.machine(), a.life), hsm.Principal{Role: hsm.RoleAppliance, Name: "appliance"})
	a.end.Store(end)
	defer end.die()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	src, err := a.open(ctx, end, a.src)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dst, err := a.open(ctx, end, a.dst)
	if err != nil {
		return nil, err
	}
	defer dst.Close()
	r, err := synckey.Run(ctx, src, dst, o)
	applied := -1
	if r != nil {
		applied = r.Applied
	}
	a.w.trace.add("synckey %+v: applied %d: %s", plain(o), applied, brief(err))
	a.w.count(func(s *stats) { s.kinds["synckey"]++ })
	return r, err
}

// plain is what can be printed of options.
func plain(o synckey.Options) string {
	return fmt.Sprintf("both %t destroyed %t users %t", o.Both, o.Destroyed, o.Users)
}

func (a *agent) open(ctx context.Context, end *endpoint, r *region) (*cluster.Cluster, error) {
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) { return a.w.net.dial(end, m) }
	return cluster.Open(ctx, r.profile(), cluster.Credential{}, cluster.WithDialer(dial))
}

// work reconciles now and then, in all the ways there are, while things go wrong.
func (a *agent) work(round int, over <-chan struct{}) {
	for n := 0; ; n++ {
		d := a.w.dice("synckey", fmt.Sprint(round), fmt.Sprint(n))
		select {
		case <-time.After(d.between(time.Second, 20*time.Second)):
		case <-over:
			return
		}
		if d.hit(300) {
			dies := time.AfterFunc(d.between(0, 2*time.Second), func() {
				if e := a.end.Load(); e != nil {
					a.w.trace.add("%s dies", e.name)
					e.die()
				}
			})
			defer dies.Stop()
		}
		_, _ = a.run(synckey.Options{Both: d.hit(600), Destroyed: d.hit(400), Users: d.hit(500)})
	}
}

// cut cuts the WAN for a while.
func (a *agent) cut(n *nemesis, d *dice) {
	way := d.n(3)
	for _, b := range a.dst.members() {
		n.cut(a.machine(), b.name, way)
	}
	n.later(d.between(time.Second, 30*time.Second), func() {
		for _, b := range a.dst.members() {
			n.mend(a.machine(), b.name)
		}
	})
}

// patiently reconciles, once more if a region refuses what the other's clocks made
// ahead of time.
func (a *agent) patiently(o synckey.Options) (*synckey.Result, error) {
	r, err := a.run(o)
	if errors.Is(err, hsm.ErrFuture) {
		time.Sleep(maxSkew)
		return a.run(o)
	}
	return r, err
}

// join reconciles until both regions hold the same. First one way: that leaves
// the source as it is.
func (a *agent) join() {
	before := a.src.root()
	oneWay := synckey.Options{Destroyed: true, Users: true, MaxDestroyed: synckey.Unlimited()}
	_, err := a.patiently(oneWay)
	if err != nil {
		a.w.violate("synckey in calm: %v", err)
	}
	if a.src.root() != before {
		a.w.violate("synckey from %s changed %s", a.src.name, a.src.name)
	}
	for range 5 {
		r, err := a.patiently(everything)
		switch {
		case err != nil:
			a.w.violate("synckey in calm: %v", err)
			return
		case len(r.Conflicts) > 0:
			a.w.violate("synckey finds conflicts: %v", r.Conflicts)
			return
		case r.RootsEqual:
			if a.src.root() != a.dst.root() {
				a.w.violate("synckey says that the roots are equal; they are not")
			}
			return
		}
	}
	a.w.violate("synckey does not bring %s and %s together", a.src.name, a.dst.name)
}

// root is that of a region whose HSMs hold the same.
func (r *region) root() hsm.Root {
	b := r.members()[0]
	b.mu.Lock()
	eye := b.eye
	b.mu.Unlock()
	if eye == nil {
		return hsm.Root{}
	}
	info, err := eye.Info(context.Background())
	if err != nil {
		r.w.violate("%s: %v", b.name, err)
	}
	return info.Root
}
