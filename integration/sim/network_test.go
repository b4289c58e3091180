package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// endpoint is one life of a caller: a client, or an HSM as a client of its peers.
type endpoint struct {
	name string
	who  hsm.Principal // by its certificate
	dead chan struct{}
	once sync.Once
}

func newEndpoint(name string, who hsm.Principal) *endpoint {
	return &endpoint{name: name, who: who, dead: make(chan struct{})}
}

// die ends the caller: it sends nothing any more and hears nothing any more.
// What it has sent is on its way.
func (e *endpoint) die() { e.once.Do(func() { close(e.dead) }) }

func (e *endpoint) isDead() bool {
	select {
	case <-e.dead:
		return true
	default:
		return false
	}
}

// identity is what a caller's certificate says, in a region.
func (e *endpoint) identity(r *region) pki.Identity {
	id := pki.Identity{Cluster: r.id, Kind: pki.KindClient, Name: e.who.Name}
	switch e.who.Role {
	case hsm.RoleHSM:
		id.Kind = pki.KindHSM
	case hsm.RoleAppliance:
		id.Kind = pki.KindAppliance
	}
	return id
}

// conn is a session on its HSM, and whether that has ended the connection.
type conn struct {
	from    *endpoint
	session hsm.Session
	ended   atomic.Bool
}

// connect notes a session.
func (b *box) connect(from *endpoint, s hsm.Session) *conn {
	c := &conn{from: from, session: s}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns = append(slices.DeleteFunc(b.conns, func(c *conn) bool { return c.from.isDead() }), c)
	return c
}

// hangUpOn ends the connections of callers that are lost.
func (b *box) hangUpOn(lost func(id pki.Identity, issued time.Time) bool) (n int) {
	b.mu.Lock()
	conns := slices.Clone(b.conns)
	b.mu.Unlock()
	for _, c := range conns {
		if lost(c.from.identity(b.region), time.Now()) && c.ended.CompareAndSwap(false, true) {
			_ = c.session.Close()
			n++
		}
	}
	return n
}

// silence is how long a side of a connection waits for the other before it takes
// it for broken.
const silence = 15 * time.Second

// network carries calls between endpoints and HSMs.
type network struct {
	w       *world
	stormy  atomic.Bool
	flights atomic.Int64 // messages on their way

	mu    sync.Mutex
	count map[string]int     // calls so far, by what they are
	cut   map[[2]string]bool // by the machines at both ends, in one direction
}

func newNetwork(w *world) *network {
	return &network{w: w, count: map[string]int{}, cut: map[[2]string]bool{}}
}

// machine is the machine an endpoint is on: its name without its life.
func machine(endpoint string) string {
	for i, c := range endpoint {
		if c == '.' {
			return endpoint[:i]
		}
	}
	return endpoint
}

// setCut cuts a direction, or heals it.
func (n *network) setCut(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = cut
	n.w.trace.add("%s -> %s is cut: %t", from, to, cut)
}

// heal mends the network.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.stormy.Store(false)
	n.w.trace.add("the network is well")
}

func (n *network) isCut(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[[2]string{machine(from), machine(to)}]
}

// call is one call on its way.
type call struct {
	from   *endpoint
	to     *box
	life   int    // of the HSM that it is meant for; 0: any
	method string // of hsm.Module or hsm.Session
	about  string // an operation or reference: calls about different things are different
	safe   bool   // may be delivered twice: its contract says that it is idempotent
	do     func(ctx context.Context, s process) (any, error)
}

// reply is what comes back.
type reply struct {
	value any
	err   error
}

// fate is what becomes of a message. It follows from the seed and the message.
type fate struct {
	there, back    time.Duration
	lost, lostBack bool
	noticed        bool          // a loss is noticed soon: the connection is reset
	again          time.Duration // when it arrives a second time; 0: never
	id             string
}

func (n *network) fate(c call) fate {
	what := fmt.Sprintf("%s>%s %s %s", c.from.name, c.to.name, c.method, c.about)
	n.mu.Lock()
	n.count[what]++
	f := fate{id: fmt.Sprintf("%s #%d", what, n.count[what])}
	n.mu.Unlock()
	d := n.w.dice("message", f.id)
	near, far := 100*time.Microsecond, 3*time.Millisecond
	if c.to.region.name != n.w.regionOf(c.from) {
		near, far = 35*time.Millisecond, 60*time.Millisecond
	}
	f.there, f.back = d.between(near, far), d.between(near, far)
	if !n.stormy.Load() {
		return f
	}
	f.lost, f.lostBack, f.noticed = d.hit(25), d.hit(25), d.hit(500)
	for _, delay := range []*time.Duration{&f.there, &f.back} {
		switch {
		case d.hit(40):
			*delay += d.between(time.Millisecond, time.Second)
		case d.hit(8):
			*delay += d.between(time.Second, 40*time.Second)
		}
	}
	if c.safe && d.hit(40) {
		f.again = d.between(time.Millisecond, []time.Duration{100 * time.Millisecond, time.Minute}[d.n(2)])
	}
	return f
}

func gone(b *box) error { return fmt.Errorf("%w: %s does not answer", hsm.ErrUnavailable, b.name) }

// send carries a call to the HSM and its reply back, and returns when the reply
// is here, the connection is taken for broken, or the caller gives up.
func (n *network) send(ctx context.Context, c call) (any, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if c.from.isDead() {
		return nil, gone(c.to)
	}
	f := n.fate(c)
	n.w.trace.add("%s: sent", f.id)
	replies := make(chan reply, 1)
	n.fly(func() { n.carry(c, f, replies) })
	broken := time.NewTimer(silence + f.there) // no two at one instant
	defer broken.Stop()
	select {
	case r := <-replies:
		return r.value, r.err
	case <-broken.C:
		return nil, gone(c.to)
	case <-c.from.dead:
		return nil, gone(c.to)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			time.Sleep(f.there / 64) // several give up at one instant, and notice one by one
		}
		return nil, ctx.Err()
	}
}

// fly runs a message's way, which may take longer than anyone waits for it.
func (n *network) fly(way func()) {
	n.flights.Add(1)
	n.w.background(func() {
		defer n.flights.Add(-1)
		way()
	})
}

func (n *network) carry(c call, f fate, replies chan<- reply) {
	time.Sleep(f.there)
	lost := func(what string) {
		n.w.trace.add("%s: %s lost", f.id, what)
		if f.noticed {
			time.Sleep(f.back)
			replies <- reply{err: gone(c.to)}
		}
	}
	if f.lost || n.isCut(c.from.name, c.to.name) {
		lost("request")
		return
	}
	r := n.arrive(c, f.id)
	if f.again > 0 {
		n.fly(func() {
			time.Sleep(f.again)
			if !n.isCut(c.from.name, c.to.name) {
				n.arrive(c, f.id+" again")
			}
		})
	}
	time.Sleep(f.back)
	if f.lostBack || n.isCut(c.to.name, c.from.name) {
		lost("reply")
		return
	}
	replies <- r
}

// arrive does the call on the HSM.
func (n *network) arrive(c call, id string) reply {
	h, life := c.to.running()
	switch {
	case h == nil:
		n.w.trace.add("%s: nobody is there", id)
		return reply{err: gone(c.to)}
	case c.life != 0 && c.life != life:
		n.w.trace.add("%s: another life", id)
		return reply{err: fmt.Errorf("%w: %s was started again", hsm.ErrSession, c.to.name)}
	}
	v, err := c.do(context.Background(), h)
	if !c.to.alive(life) {
		n.w.trace.add("%s: dies on the way", id)
		return reply{err: gone(c.to)}
	}
	n.w.trace.add("%s: %s", id, brief(err))
	n.w.checker.served(c, err)
	n.w.checker.look(c.to)
	return reply{v, err}
}

// brief is an error in few words.
func brief(err error) string {
	if err == nil {
		return "ok"
	}
	s := err.Error()
	return s[:min(len(s), 160)]
}
