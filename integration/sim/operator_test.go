package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// lose destroys an HSM for good.
func (b *box) lose() {
	b.kill()
	b.gone.Store(true)
	b.w.trace.add("%s is lost for good", b.name)
}

// repair does what an operator does once HSMs were lost for good: each is removed
// by force and a new one takes its place, and operations in doubt need not wait for
// it any more. Those that begin later wait for it too, so the operator comes after
// every storm. It comes when the time is past to which any clock was ahead: until
// then HSMs refuse what others have made.
func (r *region) repair() {
	lost := r.lostBoxes()
	if len(lost) == 0 && r.repairs == 0 {
		return
	}
	time.Sleep(maxSkew + time.Minute)
	r.repairs++
	if err := r.operate(lost); err != nil {
		r.w.violate("%s cannot be repaired: %v", r.name, err)
	}
}

// lostBoxes lists the HSMs that are lost and still members.
func (r *region) lostBoxes() (lost []*box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.boxes {
		if b.gone.Load() && !b.replaced {
			b.replaced = true
			lost = append(lost, b)
		}
	}
	return lost
}

func (r *region) operate(lost []*box) error {
	end := newEndpoint(fmt.Sprintf("%s/operator.%d", r.name, r.repairs), hsm.Principal{Role: hsm.RoleNone, Name: "client"})
	defer end.die()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) { return r.w.net.dial(end, m) }
	c, err := cluster.Open(ctx, r.profile(), cluster.Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(password)}, cluster.WithDialer(dial))
	if err != nil {
		return err
	}
	defer c.Close()
	for _, b := range lost {
		removed, err := c.Remove(ctx, b.member.ID, true)
		if err != nil {
			return fmt.Errorf("remove %s: %w", b.name, err)
		}
		r.w.trace.add("%s is removed, drained: %t", b.name, removed.Drained)
		r.join()
	}
	settled, err := c.Settle(ctx, false)
	if err == nil {
		r.w.trace.add("operations in doubt do not wait for %v", settled.Members)
	}
	return err
}

// join adds a new HSM: it holds what another does before it is a member.
func (r *region) join() {
	from := r.members()[0]
	b := r.add()
	r.copy(from, b, hsm.ScopeCluster)
	r.copy(from, b, hsm.ScopeLineage)
	r.must(from, hsm.Change{Kind: hsm.ChangeMember, Member: &b.member})
	r.w.checker.look(b)
}
