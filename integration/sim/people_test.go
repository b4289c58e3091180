package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// person is a user that an admin made.
type person struct {
	name      string
	created   bool     // acknowledged
	deleted   bool     // asked for
	buried    bool     // acknowledged
	passwords []string // that it may have: one, unless that is not known
	unsure    []string // those of the last storm whose change was not acknowledged
	round     int      // of the last change
}

// manage is what an admin does: it creates, changes and deletes users, and changes
// settings.
func (c *caller) manage(ctx context.Context, d *dice) {
	p := c.r.pickPerson(d)
	if d.n(4) == 0 {
		c.appoint(ctx)
	}
	switch what := d.n(10); {
	case p == nil || what < 3:
		c.hire(ctx)
	case what < 8:
		c.rename(ctx, p, fmt.Sprintf("password-%d-%d", c.life, c.step))
	default:
		p.deleted = true
		_, err := c.cluster.Change(ctx, hsm.Change{Kind: hsm.ChangeUserDelete, User: p.name, Role: hsm.RoleCryptoUser})
		c.say(hsm.ChangeUserDelete, 0, err)
		p.buried = err == nil && !c.end.isDead()
	}
}

func (c *caller) hire(ctx context.Context) {
	p := &person{name: fmt.Sprintf("%s_%d_%d", c.r.name, c.life, c.step), passwords: []string{password}, round: c.r.round}
	c.r.people = append(c.r.people, p)
	_, err := c.cluster.Change(ctx, hsm.Change{Kind: hsm.ChangeUserCreate, User: p.name, Role: hsm.RoleCryptoUser, Password: secret(password)})
	c.say(hsm.ChangeUserCreate, 0, err)
	p.created = err == nil && !c.end.isDead()
}

// rename changes a password. What was refused before anything was done leaves the
// one before; an outcome that is not known leaves both, for this storm. What was
// acknowledged is over when a later change is, however the clocks of the HSMs differ,
// if that has heard all HSMs but fewer than hold a copy.
func (c *caller) rename(ctx context.Context, p *person, to string) {
	again := p.round == c.r.round
	p.round = c.r.round
	if !again {
		p.unsure = nil // all HSMs agree now
	}
	changed, err := c.cluster.Change(ctx, hsm.Change{Kind: hsm.ChangeUserPassword, User: p.name, Role: hsm.RoleCryptoUser, Password: secret(to)})
	c.say(hsm.ChangeUserPassword, 0, err)
	var short *cluster.CopiesError
	switch {
	case err == nil && !c.end.isDead() && (!again || c.heardEnough(changed)):
		p.passwords = append([]string{to}, p.unsure...)
	case err == nil && !c.end.isDead():
		p.passwords = append(p.passwords, to)
	case changed == nil && errors.As(err, &short), errors.Is(err, hsm.ErrNotFound) && !errors.Is(err, hsm.ErrUnavailable):
	default:
		p.passwords, p.unsure = append(p.passwords, to), append(p.unsure, to)
	}
}

// heardEnough tells whether a change is later than all that were acknowledged.
func (c *caller) heardEnough(changed *cluster.Changed) bool {
	unheard := len(changed.Copies) + len(changed.Missing) - len(changed.Heard)
	return unheard < max(1, c.r.policy.MinCopies)
}

// pickPerson picks a user that there should be.
func (r *region) pickPerson(d *dice) *person {
	var there []*person
	for _, p := range r.people {
		if p.created && !p.deleted {
			there = append(there, p)
		}
	}
	if len(there) == 0 {
		return nil
	}
	return there[d.n(len(there))]
}

// people checks the users on every HSM of a region, when all hold the same.
func (c *checker) people(r *region) {
	for _, b := range r.members() {
		h, _ := b.running()
		if h == nil {
			continue
		}
		b.mu.Lock()
		eye := b.eye
		b.mu.Unlock()
		list, err := eye.Users(context.Background())
		if err != nil {
			c.w.violate("%s: users: %v", b.name, err)
		}
		there := map[string]bool{}
		c.settings(r, b, eye)
		for _, u := range list {
			there[u.Name] = true
		}
		for _, p := range r.people {
			switch {
			case p.created && !p.deleted && !there[p.name]:
				c.w.violate("%s: user %s is lost; there are %v", b.name, p.name, slices.Sorted(maps.Keys(there)))
			case p.buried && there[p.name]:
				c.w.violate("%s: user %s is there after its deletion was acknowledged", b.name, p.name)
			case p.created && !p.deleted && len(p.passwords) == 1:
				c.login(b, h.HSM().Module(hsm.Principal{Role: hsm.RoleNone}), p)
			}
		}
	}
}

func (c *checker) login(b *box, m hsm.Module, p *person) {
	s, _, err := m.Login(context.Background(), hsm.RoleCryptoUser, p.name, secret(p.passwords[0]))
	if err != nil {
		c.w.violate("%s: user %s cannot log in with the password that was acknowledged last: %v", b.name, p.name, err)
		return
	}
	_ = s.Close()
}
