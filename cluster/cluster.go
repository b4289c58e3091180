package cluster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
)

// Cluster is a connection to every reachable HSM of one cluster, under one
// login. It is safe for concurrent use. An HSM that fails is left out, tried
// again in the background, and used again when it answers.
//
// It is an hsm.Replica and an hsm.Sketcher: the union of its HSMs.
type Cluster struct {
	profile  *profile.Profile
	dial     Dialer
	auth     *auth
	timing   timing
	override *Policy
	routing  Routing
	together bool         // session keys stay on one HSM, home
	log      *slog.Logger // warnings, and cleanups that could not be delivered
	warned   sync.Once

	policy   atomic.Pointer[Policy]
	hearing  sync.Mutex                // guards inTouch and remote.policy, and that what it says is so of policy
	inTouch  bool                      // the settings are of an HSM in touch with others
	remotes  atomic.Pointer[[]*remote] // replaced whole under mu
	seed     uint64                    // of all chance in waits and turns
	turn     atomic.Uint32
	coverage *coverageCache
	home     atomic.Pointer[remote]
	// approvals go with every operation that may take some.
	approvals []hsm.Approval

	base   context.Context // ends in Close, after the grace
	cancel context.CancelFunc
	keep   sync.WaitGroup // connections and the watch over members
	ops    sync.WaitGroup // work that outlives the call that began it

	mu      sync.Mutex
	closed  bool
	changed chan struct{}                   // closed and replaced when an HSM comes, goes or fails an attempt
	opener  atomic.Pointer[context.Context] // of Open, while it runs
}

// Dialer reaches one HSM. It need not connect yet; an HSM that cannot be reached
// answers with hsm.ErrUnavailable at the latest when it is asked for a session.
type Dialer func(ctx context.Context, m hsm.Member) (hsm.Module, error)

// Option changes how Open connects.
type Option func(*Cluster)

// WithDialer replaces the connection over mutual TLS, for HSMs in this process.
func WithDialer(d Dialer) Option { return func(c *Cluster) { c.dial = d } }

// WithPolicy replaces the cluster's durability policy for this client, in both
// directions: an application's own configuration (configure-pkcs11, or
// cloudhsm_client.cfg) is applied so. A zero Timeout means the default.
func WithPolicy(p Policy) Option { return func(c *Cluster) { c.override = &p } }

// WithLog gives the Cluster a log for what no error value tells: warnings about
// the policy, once, when the first key is made; and for cleanups of failed
// creations that could not be delivered, in CloudHSM's words.
func WithLog(l *slog.Logger) Option { return func(c *Cluster) { c.log = l } }

// timing holds the intervals of the client; tests shorten them.
type timing struct {
	connect    time.Duration // one attempt to connect and log in
	call       time.Duration // one short call to one HSM
	grace      time.Duration // for HSMs slower than those that suffice
	ready      time.Duration // for HSMs without which too few are in use
	starting   time.Duration // for HSMs that say they will serve soon, in Open
	backoffMin time.Duration
	backoffMax time.Duration
	refresh    time.Duration // between two looks at members and settings
	recheck    time.Duration // before a key's incomplete coverage is asked for again
	clock      time.Duration // for which an HSM is avoided whose clock is ahead
	cleanup    time.Duration // of a failed creation
	close      time.Duration // for work still under way in Close
}

var defaultTiming = timing{
	connect: 10 * time.Second, call: 5 * time.Second, grace: time.Second, starting: 30 * time.Second,
	backoffMin: 200 * time.Millisecond, backoffMax: 3 * time.Second,
	refresh: 5 * time.Second, recheck: 2 * time.Second,
	clock: time.Minute, cleanup: 5 * time.Second, close: 3 * time.Second,
}

func withTiming(t timing) Option { return func(c *Cluster) { c.timing = t } }

// Open connects to the HSMs of the profile and to every other member it learns
// of, all in parallel, and logs in. One HSM is enough; the others are kept trying
// for. The password is sent to one HSM, so that a wrong one counts once; the
// others take that one's ticket. While HSMs answer that they are starting (hsm.ErrStarting), or
// are there and do not answer in time, Open waits for a while.
//
// ErrNoHSM, with each address and why, if none answers; hsm.ErrLogin or
// hsm.ErrLocked if the credential is refused; ErrMinCopies if WithPolicy names a
// setting that no cluster of this size can fulfil.
func Open(ctx context.Context, p *profile.Profile, cred Credential, opts ...Option) (*Cluster, error) {
	c := &Cluster{profile: p, timing: defaultTiming, log: slog.New(slog.DiscardHandler), changed: make(chan struct{}), coverage: newCoverageCache()}
	for _, o := range opts {
		o(c)
	}
	var seed [8]byte
	rand.Read(seed[:])
	c.seed = binary.LittleEndian.Uint64(seed[:])
	c.turn.Store(uint32(c.seed % (1 << 16))) // short-lived clients must not all begin with the same HSM
	c.auth = newAuth(cred)
	c.applySettings(hsm.Settings{})
	c.remotes.Store(&[]*remote{})
	if c.dial == nil {
		dial, err := remoteDialer(p, cred)
		if err != nil {
			return nil, err
		}
		c.dial = dial
	}
	c.base, c.cancel = context.WithCancel(hsm.SameApplication(context.WithoutCancel(ctx), context.Background()))
	c.opener.Store(&ctx) // later logins are nobody's in particular: a Cluster may serve many
	defer c.opener.Store(nil)
	c.learn(profileMembers(p))
	if err := c.awaitOpen(ctx); err != nil {
		c.Close()
		return nil, err
	}
	if err := c.impossible(); err != nil {
		c.Close()
		return nil, err
	}
	c.keep.Go(c.watch)
	return c, nil
}

func profileMembers(p *profile.Profile) []hsm.Member {
	members := make([]hsm.Member, len(p.HSMs))
	for i, h := range p.HSMs {
		members[i] = hsm.Member{ID: h.ID, Name: h.Name, Address: h.Address, Zone: h.Zone}
	}
	return members
}

// errNoAnswer: an HSM takes its time, on a busy machine perhaps.
var errNoAnswer = errors.New("no answer")

// starting tells whether an HSM answers that it will serve soon, or is there and has
// not answered in time.
func (c *Cluster) starting() bool {
	return slices.ContainsFunc(c.all(), func(r *remote) bool {
		err := r.downError()
		return errors.Is(err, hsm.ErrStarting) || errors.Is(err, errNoAnswer) || errors.Is(err, rpc.ErrSlow)
	})
}

// awaitOpen waits until every HSM has been tried once, or one answers and the
// grace for the others is over.
func (c *Cluster) awaitOpen(ctx context.Context) error {
	var grace <-chan time.Time
	learned, began := false, time.Now()
	late := time.After(c.timing.starting)
	for {
		changed := c.changes()
		tried := c.allTried() // before up: an HSM is up before it counts as tried
		up := c.up()
		if len(up) == 0 {
			if err := c.auth.refusal(); err != nil {
				return err
			}
			if tried && (!c.starting() || time.Since(began) > c.timing.starting) {
				return c.noHSM()
			}
		}
		if len(up) > 0 && !learned {
			learned = true
			c.refresh(ctx)
			grace = time.After(c.timing.grace)
			continue
		}
		if len(up) > 0 && tried {
			return nil
		}
		select {
		case <-changed:
		case <-grace:
			return nil
		case <-late:
			late = nil
		case <-ctx.Done():
			return fmt.Errorf("%w; %w", c.noHSM(), ctx.Err())
		}
	}
}

// Close ends the sessions, and with them their session keys. Work that a
// successful call left to finish in the background is waited for briefly. No
// goroutine of the Cluster is left when Close returns.
func (c *Cluster) Close() error {
	c.mu.Lock()
	already := c.closed
	c.closed = true
	c.mu.Unlock()
	if already {
		return nil
	}
	finished := make(chan struct{})
	go func() { defer close(finished); c.ops.Wait() }()
	select {
	case <-finished:
	case <-time.After(c.timing.close):
	}
	c.cancel()
	<-finished
	c.keep.Wait()
	c.auth.wipe()
	return nil
}

// begin holds Close up until done is called. ErrClosed once Close has begun.
func (c *Cluster) begin() (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	c.ops.Add(1)
	return c.ops.Done, nil
}

// background runs f on its own, unless the Cluster is closed. Its context ends
// with the Cluster.
func (c *Cluster) background(f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.ops.Go(func() { f(c.base) })
	return true
}

// Profile returns the profile the Cluster was opened with.
func (c *Cluster) Profile() *profile.Profile { return c.profile }

// Principal returns who is logged in.
func (c *Cluster) Principal() hsm.Principal { return c.auth.principal() }

// Lineage returns the lineage of every object in the cluster.
func (c *Cluster) Lineage() hsm.Lineage { return c.profile.Lineage }

// hearSettings takes the settings as an HSM has them. One that is out of touch with the others
// may have older ones, with fewer copies: it is heard only until one is that is not, or
// if its settings are others than when it was heard last. Then an admin has changed them
// there, perhaps to go on with the HSMs that are left.
func (c *Cluster) hearSettings(r *remote, info hsm.Info) {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	p := policyOf(info.Settings, c.profile)
	changed := r.policy != nil && *r.policy != p
	r.policy = &p
	if info.OutOfTouch && c.inTouch && !changed {
		return
	}
	c.inTouch = !info.OutOfTouch
	c.applySettings(info.Settings)
}

func (c *Cluster) applySettings(s hsm.Settings) {
	p := policyOf(s, c.profile)
	if c.override != nil {
		p = *c.override
		p.MinCopies = max(p.MinCopies, 1)
	}
	if p.Timeout <= 0 {
		p.Timeout = DefaultPolicy.Timeout
	}
	c.policy.Store(&p)
}
