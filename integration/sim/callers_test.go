package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Callers bound their operations, so that what a dead one leaves is decided soon:
// a provisional key lives for creationTimeout and 15 s.
const (
	creationTimeout = 5 * time.Second
	callTimeout     = 40 * time.Second
	callerLease     = creationTimeout + 15*time.Second
)

// callers are the clients of a region.
type callers struct {
	r       *region
	all     []*caller
	working sync.WaitGroup
	resting atomic.Bool
	keys    *board
}

// caller is one client: it does one thing after the other. It may die at any
// moment, and is then started anew.
type caller struct {
	*callers
	name   string
	number int
	user   string
	life   int
	step   int

	mu      sync.Mutex
	end     *endpoint // nil: not connected
	cluster *cluster.Cluster
}

// key is a token key that callers tell each other of.
type key struct {
	label string
	ref   hsm.KeyRef
	owner string
	use   hsm.Use // that works on it, and always gives the same
	wraps bool    // it wraps, unwraps and derives
}

// board is the keys that were made.
type board struct {
	mu   sync.Mutex
	keys []key
}

func (b *board) add(k key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = append(b.keys, k)
}

// pick prefers young keys: most of what can go wrong goes wrong soon.
func (b *board) pick(d *dice, fits func(key) bool) (key, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var fit []key
	for _, k := range b.keys {
		if fits(k) {
			fit = append(fit, k)
		}
	}
	switch n := len(fit); {
	case n == 0:
		return key{}, false
	case d.hit(700):
		return fit[n-1-d.n(min(n, 8))], true
	default:
		return fit[d.n(n)], true
	}
}

func newCallers(r *region, n int) *callers {
	cs := &callers{r: r, keys: &board{}}
	for i := range n {
		cs.all = append(cs.all, &caller{callers: cs, number: i, name: fmt.Sprintf("%s/caller-%d", r.name, i), user: users[i%len(users)]})
	}
	cs.all = append(cs.all, &caller{callers: cs, number: n, name: r.name + "/admin", user: adminName})
	return cs
}

// work sets the callers to work.
func (cs *callers) work() {
	cs.resting.Store(false)
	for _, c := range cs.all {
		cs.working.Go(c.run)
	}
}

// rest returns when all callers have finished what they did.
func (cs *callers) rest() {
	cs.resting.Store(true)
	cs.working.Wait()
}

// end lets all callers go.
func (cs *callers) end() {
	for _, c := range cs.all {
		if c.cluster != nil {
			_ = c.cluster.Close()
		}
		if c.end != nil {
			c.end.die()
		}
	}
}

// die ends a caller in the middle of whatever it does.
func (c *caller) die() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		c.r.w.trace.add("%s dies", c.end.name)
		c.end.die()
	}
}

func (c *caller) run() {
	for !c.resting.Load() {
		c.step++
		d := c.r.w.dice("caller", c.name, fmt.Sprint(c.step))
		if c.cluster == nil {
			c.connect()
		} else {
			c.do(d)
		}
		if c.end != nil && c.end.isDead() {
			c.leave()
		}
		time.Sleep(d.between(20*time.Millisecond, 1500*time.Millisecond))
	}
}

// leave lets go of a cluster whose connections are dead.
func (c *caller) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.cluster; old != nil {
		c.r.w.background(func() { _ = old.Close() })
	}
	c.cluster, c.end = nil, nil
}

func (c *caller) connect() {
	c.life++
	w := c.r.w
	end := newEndpoint(fmt.Sprintf("%s.%d", c.name, c.life), hsm.Principal{Role: hsm.RoleNone, Name: "client"})
	c.mu.Lock()
	c.end = end
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) { return w.net.dial(end, m) }
	cl, err := cluster.Open(ctx, c.r.profile(), cluster.Credential{Name: c.user, Password: secret(password)}, cluster.WithDialer(dial))
	w.trace.add("%s opens the cluster: %s", end.name, brief(err))
	if err != nil {
		end.die()
		c.mu.Lock()
		c.end = nil
		c.mu.Unlock()
		return
	}
	c.cluster = cl
}

// do does one thing.
func (c *caller) do(d *dice) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if c.user == adminName {
		c.manage(ctx, d)
		return
	}
	mine := func(k key) bool { return k.owner == c.user }
	k, any := c.keys.pick(d, mine)
	switch what := d.n(100); {
	case !any || what < 20:
		c.create(ctx, d)
	case what < 26:
		c.sessionKey(ctx, d)
	case what < 34:
		c.fromAnother(ctx, d)
	case what < 44:
		c.destroy(ctx, k)
	case what < 50:
		c.change(ctx, d, k)
	case what < 55:
		c.reinsert(ctx, k)
	default:
		c.use(ctx, k)
	}
}

// label names a creation.
func (c *caller) label() string { return fmt.Sprintf("%s.%d-%d", c.name, c.life, c.step) }

var cmac = hsm.Use{Kind: hsm.UseMAC, Params: hsm.Params{Mechanism: "aes-cmac"}}

// create makes a token key or a pair from nothing.
func (c *caller) create(ctx context.Context, d *dice) {
	label := c.label()
	r := hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"label": label}}
	k := key{label: label, owner: c.user, use: cmac}
	switch d.n(6) {
	case 0, 1:
		for _, a := range []string{"wrap", "unwrap", "derive"} {
			r.Attributes[a] = "true"
		}
		k.wraps = true
	case 2:
		r.Type = "generic-secret"
		k.use = hsm.Use{Kind: hsm.UseMAC, Params: hsm.Params{Mechanism: "hmac", Hash: "sha256"}}
	case 3:
		r.Type, r.Size, r.Public = "ed25519", 0, map[string]string{"label": label}
		r.Attributes["sign"] = "true"
		k.use = hsm.Use{Kind: hsm.UseSign, Params: hsm.Params{Mechanism: "ed25519"}}
	case 4:
		material := append([]byte{}, clearMaterial...)
		for len(material) < 32 {
			material = append(material, byte(d.n(256)))
		}
		r.Method, r.Size, r.Data = hsm.MethodImport, 0, hsm.NewSecret(material)
	}
	if d.hit(200) {
		r.Shares = []string{users[(c.number+1)%len(users)]}
	}
	c.creation(ctx, r, k)
}

// fromAnother makes a token key by unwrapping or deriving.
func (c *caller) fromAnother(ctx context.Context, d *dice) {
	base, any := c.keys.pick(d, func(k key) bool { return k.wraps && k.owner == c.user })
	if !any {
		return
	}
	label := c.label()
	r := hsm.CreateRequest{Method: hsm.MethodDerive, Token: true, Type: "aes", Size: 32, Key: base.ref, Attributes: map[string]string{"label": label}}
	r.Params = hsm.Params{Mechanism: "sp800-108-counter", Hash: "sha256", SharedInfo: []byte(label)}
	if d.hit(500) {
		wrapped, err := c.cluster.Use(ctx, hsm.Use{Kind: hsm.UseWrap, Key: base.ref, Payload: base.ref, Params: hsm.Params{Mechanism: "aes-kwp"}})
		if err != nil {
			return
		}
		r.Method, r.Size, r.Data, r.Params = hsm.MethodUnwrap, 0, hsm.NewSecret(wrapped), hsm.Params{Mechanism: "aes-kwp"}
	}
	c.creation(ctx, r, key{label: label, owner: c.user, use: cmac})
}

// sessionKey makes a session key, and may promote it.
func (c *caller) sessionKey(ctx context.Context, d *dice) {
	promoted := d.hit(600)
	label := c.label()
	r := hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: map[string]string{"label": string(sessionLabel) + label}}
	if promoted {
		r.Attributes["label"] = label
		c.r.w.checker.begins(label)
	}
	made, err := c.cluster.Create(ctx, r, cluster.Policy{})
	c.r.w.trace.add("%s makes session key %s: %s", c.name, label, brief(err))
	if err != nil {
		return
	}
	ref := made.Keys[0].Ref
	c.r.w.checker.session(ref)
	c.say(hsm.UseMAC, ref, c.try(ctx, cmac, ref))
	if promoted {
		c.r.w.checker.promotes(ref)
		c.creation(ctx, hsm.CreateRequest{Method: hsm.MethodPromote, Token: true, Key: ref}, key{label: label, owner: c.user, use: cmac})
	}
}

func (c *caller) try(ctx context.Context, u hsm.Use, ref hsm.KeyRef) error {
	u.Key, u.Data = ref, []byte("data")
	_, err := c.cluster.Use(ctx, u)
	return err
}

func (c *caller) say(what any, ref hsm.KeyRef, err error) {
	c.r.w.trace.add("%s: %s %s: %s", c.name, what, ref, brief(err))
	c.r.w.count(func(s *stats) { s.kinds[fmt.Sprint(what)]++ })
}

// reinsert exports a key of its own and inserts it again: nothing comes of it.
func (c *caller) reinsert(ctx context.Context, k key) {
	var masked []hsm.MaskedObject
	for m, err := range c.cluster.Extract(ctx, refs(k.ref)) {
		if err != nil {
			return
		}
		masked = append(masked, m)
	}
	if len(masked) == 0 || masked[0].Tombstone {
		return
	}
	_, err := c.cluster.Create(ctx, hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: masked}, cluster.Policy{Timeout: creationTimeout})
	c.say(hsm.MethodInsert, k.ref, err)
}

func refs(list ...hsm.KeyRef) func(func(hsm.KeyRef) bool) {
	return func(yield func(hsm.KeyRef) bool) {
		for _, ref := range list {
			if !yield(ref) {
				return
			}
		}
	}
}

// evidence is what an answer says of a key.
func evidence(err error) outcome {
	switch {
	case err == nil:
		return ok
	case errors.Is(err, hsm.ErrDestroyed):
		return wasDestroyed
	case errors.Is(err, hsm.ErrUnavailable):
		return nothingDone
	case errors.Is(err, hsm.ErrNotFound):
		return notFound
	}
	return nothingDone
}
