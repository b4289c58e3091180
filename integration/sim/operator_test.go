package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// lose destroys an HSM for good.
func (b *box) lose() {
	b.kill()
	b.gone.Store(true)
	b.w.trace.add("%s is lost for good", b.name)
}

// stragglers is when the last message has arrived that was sent in a storm.
const stragglers = 100 * time.Second

// repair does what an operator does after a storm. HSMs that were lost for good are
// replaced, or removed by force and new ones invited; joins and removals that were begun
// are ended; and operations in doubt need not wait for those that cannot be asked any
// more. It comes when the time is past to which any clock was ahead: until then HSMs
// refuse what others have made.
func (r *region) repair() {
	if r.w.still && r.round > 0 && !r.disturbed() {
		return
	}
	time.Sleep(max(r.ahead, stragglers) + 10*time.Second)
	r.ahead = 0
	r.repairs++
	if err := r.operate(); err != nil {
		r.w.violate("%s cannot be repaired: %v", r.name, err)
	}
}

// lostBoxes lists the HSMs that are lost and still members.
func (r *region) lostBoxes() (lost []*box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.boxes {
		if b.gone.Load() && !b.replaced && !b.isCopy && !b.removed() && b.stage.get() == belongs {
			b.replaced = true
			lost = append(lost, b)
		}
	}
	return lost
}

func (r *region) operate() error {
	for i, b := range r.lostBoxes() {
		if err := r.replace(b, fmt.Sprintf("operator.%d-%d", r.repairs, i)); err != nil {
			return err
		}
	}
	r.endJoins()
	v, err := r.admin(fmt.Sprintf("operator.%d", r.repairs))
	if err != nil {
		return err
	}
	defer v.leave()
	if err := r.endRemovals(v); err != nil {
		return err
	}
	r.duplicate() // and then it is in doubt what the copy did
	settled, err := v.Settle(v.ctx, false)
	if err == nil {
		r.w.trace.add("operations in doubt do not wait for %v", settled.Members)
	}
	return err
}

// disturbed tells whether an HSM was lost, or set back to an old image, ever.
func (r *region) disturbed() bool {
	for _, b := range r.everyone() {
		if b.gone.Load() || b.setBack.Load() {
			return true
		}
	}
	return false
}

// replace has a new HSM take the place of one that is lost, in both ways there are.
func (r *region) replace(b *box, name string) error {
	d := r.w.dice("replace", b.name)
	replaces := b.member().ID
	if d.hit(500) {
		if err := r.removes(name+"r", b, true, 0); err != nil {
			return fmt.Errorf("remove %s: %w", b.name, err)
		}
		replaces = 0
	}
	boxes, err := r.invited(name, 1, replaces, 0)
	if err != nil {
		return err
	}
	boxes[0].enter(d, nil)
	return r.awaitJoin(boxes[0])
}

// awaitJoin waits until a new HSM counts.
func (r *region) awaitJoin(b *box) error {
	for range 240 {
		if b.stage.get() == belongs {
			return nil
		}
		time.Sleep(r.w.dice("await", fmt.Sprint(r.w.trace.now())).between(400*time.Millisecond, 600*time.Millisecond))
	}
	return fmt.Errorf("%s does not join", b.name)
}

// endJoins has those HSMs join that began to in the storm. Whose token is of no use any
// more never does.
func (r *region) endJoins() {
	for _, b := range r.everyone() {
		if b.stage.get() != joining {
			continue
		}
		if b.entered() == "" && r.rival(b) {
			b.drop(fmt.Errorf("another has come with its token"))
			continue
		}
		b.enter(r.w.dice("calm joiner", b.name), nil)
		if b.entered() == "" {
			b.drop(fmt.Errorf("nobody lets it in"))
			continue
		}
		if err := r.awaitJoin(b); err != nil {
			r.w.violate("%s: %v", r.name, err)
		}
	}
}

func (r *region) everyone() []*box {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*box(nil), r.boxes...)
}

// rival tells whether another HSM belongs, or will, that came with the same token.
func (r *region) rival(b *box) bool {
	for _, other := range r.everyone() {
		if other != b && other.entered() != "" && other.invite() != "" && other.invite() == b.invite() && !other.isCopy {
			return true
		}
	}
	return false
}

// invite is the invitation that the HSM came with; empty if it was there from the start.
func (b *box) invite() string {
	token, err := pki.ParseToken(copied(b.token))
	if err != nil {
		return ""
	}
	return token.Invite.String()
}

// endRemovals removes those that are LEAVING, and those that were let in and will never
// join.
func (r *region) endRemovals(v *visitor) error {
	members, err := v.Members(v.ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		b := r.boxOf(m.ID)
		never := m.Joining && (b == nil || b.stage.get() == dropped)
		if m.Removed || !m.Leaving && !never {
			continue
		}
		known := b != nil && b.removed() // to an HSM that was removed itself, and it has stopped
		if b != nil {
			b.revokes("calm." + m.Name)
		}
		switch _, err := v.Remove(v.ctx, m.ID, known); {
		case err == nil:
			r.w.trace.add("%s is removed at last", m.Name)
		case errors.Is(err, cluster.ErrRemoval) && !strings.Contains(err.Error(), "stays LEAVING"):
			r.w.trace.add("%s, which is half removed, is needed and stays: %v", m.Name, err)
		default:
			return fmt.Errorf("remove %s, which is half removed: %w", m.Name, err)
		}
	}
	return nil
}

// boxOf is the HSM with an id; nil for a joiner that lost its disk, and came as another.
func (r *region) boxOf(id hsm.HSMID) *box {
	for _, b := range r.everyone() {
		if b.member().ID == id && !b.isCopy {
			return b
		}
	}
	return nil
}

// expelled checks that HSMs that were removed stop as soon as they can hear of it.
func (r *region) expelled() {
	for _, b := range r.formerly() {
		b.start(0)
		for range 120 {
			if p, _ := b.running(); p == nil {
				break
			}
			time.Sleep(r.w.dice("expelled", fmt.Sprint(r.w.trace.now())).between(400*time.Millisecond, 600*time.Millisecond))
		}
		if p, _ := b.running(); p != nil {
			r.w.violate("%s was removed, and still runs", b.name)
		}
	}
}

// duplicate checks that neither of two HSMs with one folder serves, and that the one
// that is left does.
func (r *region) duplicate() {
	boxes := r.members()
	d := r.w.dice("duplicate", r.name, fmt.Sprint(r.round))
	if len(boxes) < 2 || r.w.still || !d.hit(400) {
		return
	}
	b := boxes[d.n(len(boxes))]
	c := b.copy()
	if c == nil {
		return
	}
	c.start(0)
	if !r.become(hsm.StateDuplicate, b, c) {
		r.w.violate("%s and %s run under one identity, and nobody says so", b.name, c.name)
	}
	c.lose()
	if !r.become(hsm.StateActive, b) {
		r.w.violate("%s does not serve again after its copy is gone", b.name)
	}
}

// become waits until HSMs are in a state.
func (r *region) become(state hsm.State, boxes ...*box) bool {
	for range 240 {
		all := true
		for _, b := range boxes {
			all = all && b.state() == state
		}
		if all {
			return true
		}
		time.Sleep(r.w.dice("become", fmt.Sprint(r.w.trace.now())).between(400*time.Millisecond, 600*time.Millisecond))
	}
	return false
}

// state is what the HSM says that it does.
func (b *box) state() hsm.State {
	p, _ := b.running()
	if p == nil {
		return ""
	}
	id := newEndpoint("checker", hsm.Principal{Role: hsm.RoleNone, Name: "checker"}).identity(b.region)
	s, err := p.Module(id).Session(context.Background())
	if err != nil {
		return ""
	}
	defer s.Close()
	info, err := s.Info(context.Background())
	if err != nil {
		return ""
	}
	return info.State
}
