package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// Members come and go by what the program does: cluster.Invite and Remove, server.Join,
// and what HSMs tell each other. Only TLS is not there: net.join vouches that a joiner
// holds its token.

// stage is how far a new HSM has come.
type stage int

const (
	belongs stage = iota // or has belonged
	joining              // it is not known yet whether it ever will
	dropped              // it never will
)

// progress is an HSM's stage: an operator waits for what the checker sees.
type progress struct{ now atomic.Int32 }

func (p *progress) get() stage  { return stage(p.now.Load()) }
func (p *progress) set(s stage) { p.now.Store(int32(s)) }

// inviteLife is longer than a storm and the repair after it.
const inviteLife = time.Hour

// joinPatience is how long a joiner asks.
const joinPatience = 2 * time.Minute

var errPower = errors.New("the power failed")

// joinerFolder is the folder that server.Join makes, in that of the box.
const joinerFolder = "hsm"

// newcomer is a machine for a new HSM.
func (r *region) newcomer(token hsm.Secret) *box {
	b := r.newBox(func(b *box) {
		b.stage.set(joining)
		b.token, b.folder = token, filepath.Join(r.w.dir, b.name+".0")
	})
	if err := os.MkdirAll(b.folder, 0o700); err != nil {
		r.w.violate("%s: %v", b.name, err)
	}
	return b
}

// join is one process of hsm join. errPower if it has died.
func (b *box) join(fuse int) error {
	time.Sleep(b.w.dice("join", b.name, fmt.Sprint(b.lives())).between(0, time.Millisecond)) // no two at one instant
	d, life, folder := b.powerOn(fuse)
	if d == nil {
		return errPower
	}
	end := newEndpoint(fmt.Sprintf("%s.%d", b.name, life), hsm.Principal{Role: hsm.RoleNone, Name: "joiner"})
	b.mu.Lock()
	b.end = end
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), joinPatience+time.Duration(life)*time.Microsecond)
	defer cancel()
	b.w.trace.add("%s joins, life %d", b.name, life)
	_, err := server.Join(ctx, server.JoinSpec{
		Token: copied(b.token), Dir: filepath.Join(folder, joinerFolder), Address: b.member().Address, Zone: b.member().Zone, Version: "sim",
		Log: b.log(), Now: b.now, FS: d, Audit: b.openAudit(), Step: func(what string) { d.step("folder", what) }, Network: b.joinerNetwork(end),
	})
	b.w.trace.add("%s has joined, life %d: %s", b.name, life, strings.ReplaceAll(brief(err), b.w.dir, ""))
	if d.dead.Load() {
		return errPower
	}
	end.die()
	b.mu.Lock()
	defer b.mu.Unlock()
	d.dead.Store(true)
	b.disk, b.end = nil, nil
	if err == nil {
		b.sub = joinerFolder
	}
	return err
}

// joinerNetwork is what a joiner reaches. It becomes who it says that it is.
func (b *box) joinerNetwork(end *endpoint) *server.Network {
	return &server.Network{
		Join: func(ctx context.Context, address string, r rpc.JoinRequest) (rpc.JoinReply, error) {
			b.is(r.Joiner)
			return b.w.net.join(ctx, end, b, address, r)
		},
		Dial: func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
			me := &endpoint{name: end.name, who: hsm.Principal{Role: hsm.RoleHSM, Name: b.member().ID.String()}, dead: end.dead}
			return b.w.net.dial(me, m)
		},
	}
}

// is notes who a joiner says that it is.
func (b *box) is(id hsm.HSMID) {
	m := b.member()
	m.ID = id
	b.said.Store(&m)
}

// join brings a joiner's request to the HSM at an address.
func (n *network) join(ctx context.Context, from *endpoint, b *box, address string, r rpc.JoinRequest) (rpc.JoinReply, error) {
	token, err := pki.ParseToken(copied(b.token))
	if err != nil {
		return rpc.JoinReply{}, err
	}
	to := n.at(address, 0)
	if to == nil {
		return rpc.JoinReply{}, fmt.Errorf("%w: nobody at %s", hsm.ErrUnavailable, address)
	}
	v, err := n.send(ctx, call{from: from, to: to, method: "Join", about: r.Joiner.String(), safe: true, do: func(ctx context.Context, p process) (any, error) {
		reply, err := p.Admit(ctx, token.Invite.String(), r)
		if errors.Is(err, hsm.ErrNotFound) && !errors.Is(err, hsm.ErrUnavailable) {
			err = fmt.Errorf("%w: the invitation is not known", pki.ErrRefused)
		}
		return reply, err
	}})
	reply, _ := v.(rpc.JoinReply)
	return reply, err
}

// at is the HSM at an address: the one with that id, if it is not 0.
func (n *network) at(address string, id hsm.HSMID) *box {
	for _, b := range n.w.everyBox() {
		if b.member().Address == address && (id == 0 || id == b.member().ID) {
			return b
		}
	}
	return nil
}

// admin opens the region as its admin, from a machine of its own.
func (r *region) admin(name string) (*visitor, error) {
	end := newEndpoint(fmt.Sprintf("%s/%s", r.name, name), hsm.Principal{Role: hsm.RoleNone, Name: "client"})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	c, err := r.openAs(ctx, end)
	if err != nil {
		cancel()
		end.die()
		return nil, err
	}
	return &visitor{Cluster: c, end: end, ctx: ctx, cancel: cancel}, nil
}

// enter has a new HSM join, and starts it. It is started again until it has or is
// refused, or over is closed. Afterwards it may still be joining.
func (b *box) enter(d *dice, over <-chan struct{}) {
	for try := 0; b.stage.get() == joining && b.entered() == "" && try < 4; try++ {
		fuse := 0
		if over != nil && d.hit(500) {
			fuse = 1 + d.n(60)
		}
		err := b.join(fuse)
		if errors.Is(err, server.ErrTokenRefused) {
			b.drop(err)
		}
		if over != nil && b.entered() == "" && d.hit(100) {
			b.loseJoiner()
		}
		if !wait(d.between(100*time.Millisecond, 10*time.Second), over) {
			return
		}
	}
	if b.stage.get() == joining && b.entered() != "" {
		b.start(0)
	}
}

// wait waits, unless over is closed first: false.
func wait(t time.Duration, over <-chan struct{}) bool {
	select {
	case <-time.After(t):
		return true
	case <-over: // a nil one never is
		return false
	}
}

func (b *box) drop(why error) {
	b.stage.set(dropped)
	b.w.trace.add("%s never joins: %s", b.name, strings.ReplaceAll(brief(why), b.w.dir, ""))
	b.w.count(func(s *stats) { s.kinds["never joined"]++ })
}

// loseJoiner empties the disk of an HSM that has not joined. It begins anew, with the
// same token.
func (b *box) loseJoiner() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil {
		return
	}
	b.life++
	b.image, b.folder = newImage(), filepath.Join(b.w.dir, fmt.Sprintf("%s.%d.empty", b.name, b.life))
	if err := os.MkdirAll(b.folder, 0o700); err != nil {
		b.w.violate("%s: %v", b.name, err)
	}
	b.w.trace.add("%s loses its disk before it has joined", b.name)
}

// invited has an admin invite new HSMs, one, or two that share a token.
func (r *region) invited(name string, n int, replaces hsm.HSMID, dies time.Duration) ([]*box, error) {
	v, err := r.admin(name)
	if err != nil {
		return nil, err
	}
	defer v.leave()
	if dies > 0 {
		defer time.AfterFunc(dies, v.end.die).Stop()
	}
	i, err := v.Invite(v.ctx, inviteLife, replaces)
	r.w.trace.add("%s/%s invites: %s", r.name, name, brief(err))
	if err != nil {
		return nil, err
	}
	var out []*box
	for range n {
		out = append(out, r.newcomer(copied(i.Token)))
	}
	return out, nil
}

// removes has an admin remove an HSM.
func (r *region) removes(name string, b *box, force bool, dies time.Duration) error {
	v, err := r.admin(name)
	if err != nil {
		return err
	}
	defer v.leave()
	if dies > 0 {
		defer time.AfterFunc(dies, v.end.die).Stop()
	}
	b.revokes(name)
	removed, err := v.Remove(v.ctx, b.member().ID, force)
	r.w.trace.add("%s/%s removes %s: %s", r.name, name, b.name, brief(err))
	if err == nil {
		r.w.count(func(s *stats) { s.kinds["removed"]++ })
		r.w.trace.add("%s is removed, drained: %t", b.name, removed.Drained)
	}
	return err
}

// revokes has an HSM alone know of a revocation, if the script says so.
func (b *box) revokes(name string) {
	b.mu.Lock()
	eye := b.eye
	b.mu.Unlock()
	if !b.w.revokes || eye == nil {
		return
	}
	_, err := eye.Change(context.Background(), hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: "client", Name: name, Until: time.Now()}})
	b.w.trace.add("%s knows of the revocation of %s: %s", b.name, name, brief(err))
	if err == nil {
		b.mu.Lock()
		b.knows = append(b.knows, name)
		b.mu.Unlock()
	}
}

// bequeath notes what an HSM knew that is removed in good order: all others must know it.
func (b *box) bequeath() {
	b.mu.Lock()
	knows := b.knows
	b.mu.Unlock()
	b.region.mu.Lock()
	defer b.region.mu.Unlock()
	b.region.revoked = append(b.region.revoked, knows...)
}

// revoked checks that every HSM knows of the revocations that one knew which was removed in
// good order.
func (c *checker) revoked(r *region) {
	r.mu.Lock()
	want := slices.Clone(r.revoked)
	r.mu.Unlock()
	for _, b := range r.members() {
		h, _ := b.running()
		known, err := h.HSM().Revocations(context.Background())
		if err != nil {
			c.w.violate("%s: %v", b.name, err)
		}
		for _, name := range want {
			if !slices.ContainsFunc(known, func(k hsm.Revocation) bool { return k.Name == name }) {
				c.w.violate("%s does not know that %s is revoked", b.name, name)
			}
		}
	}
	c.w.count(func(s *stats) { s.kinds["revoked"] += len(want) })
}
