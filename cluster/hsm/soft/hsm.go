package soft

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// HSM is one software HSM. It is safe for concurrent use.
type HSM struct {
	opts    Options
	store   *store
	ring    atomic.Pointer[hsm.Keyring]
	clock   *hsm.Clock
	tickets hsm.Secret
	started time.Time

	gate  gate     // calls in progress, for Close
	locks refLocks // around read, merge and write of an object
	// moment is read-locked around a commit and the update of what follows from
	// it, and locked for the instant in which a sketch is copied.
	moment   sync.RWMutex
	states   [2]*reconcile.State // by scope
	liveKeys atomic.Int64
	settings atomic.Pointer[hsm.Settings]
	quorum   atomic.Pointer[hsm.QuorumValues]
	timeouts atomic.Pointer[hsm.QuorumTimeouts]
	tokens   tokenTable
	users    userTable
	ops      opTable
	cache    *keyCache
	sessions sessionTable
	attempts attempts
	floor    floor
	latest   latest
	absent   *absent // of objects, both scopes
	boot     BootID
	before   []Boot
	writes   atomic.Uint64 // sequence number after the last durable change
	lastSync atomic.Int64  // Unix milliseconds
}

var scopes = []hsm.Scope{hsm.ScopeLineage, hsm.ScopeCluster}

// Open opens the HSM in a folder, and makes it if there is none. Whatever
// stopped it before, opening is all that recovery takes. hsm.ErrCorrupt if the
// store is damaged.
func Open(o Options) (*HSM, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := o.checkExisting(); err != nil {
		return nil, err
	}
	s, err := openStore(o.Dir, o.FS, o.Untidied)
	if err != nil {
		return nil, err
	}
	h := &HSM{
		opts: o, store: s, clock: hsm.NewClock(o.ID, o.Now), started: o.Now(),
		tickets: o.Keyring.TicketKey(o.Cluster), cache: newKeyCache(cachedKeys), absent: newAbsent(math.MaxInt),
	}
	h.ring.Store(o.Keyring)
	if err := h.load(); err != nil {
		_ = s.close() // the first error says it
		return nil, err
	}
	return h, nil
}

// keys returns the keyring of this moment.
func (h *HSM) keys() *hsm.Keyring { return h.ring.Load() }

// SetKeyring puts a keyring in place of the one there is: the same lineage's, with
// all masking keys of that one, and on disk already. hsm.ErrInvalid.
func (h *HSM) SetKeyring(k *hsm.Keyring) error {
	now := h.keys()
	for _, epoch := range now.Epochs() {
		if k.Lineage() != now.Lineage() || !slices.Contains(k.Epochs(), epoch) {
			return fmt.Errorf("%w: HSM %s: the new keyring lacks what the present one holds", hsm.ErrInvalid, h.opts.ID)
		}
	}
	h.ring.Store(k)
	return nil
}

// load rebuilds what is kept in memory: sketches, counts, users and settings.
func (h *HSM) load() error {
	h.settings.Store(&hsm.Settings{MinCopies: defaultMinCopies, CheckOnUse: true})
	h.quorum.Store(&hsm.QuorumValues{})
	h.timeouts.Store(&hsm.QuorumTimeouts{Generated: hsm.TokenLife, Approved: hsm.TokenLife})
	for _, scope := range scopes {
		if err := h.loadScope(scope); err != nil {
			return h.store.wrap("open", err)
		}
	}
	if err := h.ops.marks.load(h.store.db); err != nil {
		return h.store.wrap("open", err)
	}
	if err := h.checkFloor(); err != nil {
		return err
	}
	if err := h.loadLatest(); err != nil {
		return err
	}
	return h.beginBoot()
}

func (h *HSM) loadScope(scope hsm.Scope) error {
	var special []hsm.KeyRef
	all := newTally(h.keys().FingerprintKeys())
	err := scan(h.store.db, []byte{prefixDigest, byte(scope)}, func(key, value []byte) (bool, error) {
		ref, err := refOf(key)
		if err != nil {
			return false, err
		}
		o, err := decodeDigest(ref, value)
		all.add(o)
		h.count(nil, &o)
		h.absent.add(objectKey(scope, ref))
		if o.Kind == hsm.KindUser || o.Kind == hsm.KindPolicy {
			special = append(special, ref)
		}
		return true, err
	})
	h.states[scope] = all.sum()
	if err != nil {
		return err
	}
	for _, ref := range special {
		cur, err := h.read(scope, ref)
		if err != nil {
			return err
		}
		if cur == nil {
			return h.lost(fmt.Sprintf("%s is listed and not there", ref))
		}
		h.learn(cur.rec, cur.obj)
		_ = h.clock.Observe(cur.rec.Latest()) // what is too far ahead is refused when it is changed
	}
	return nil
}

// count keeps the number of objects and of live keys.
func (h *HSM) count(old, new *hsm.Object) {
	isLive := func(o *hsm.Object) int64 {
		if o != nil && o.Kind == hsm.KindKey && !o.Tombstone {
			return 1
		}
		return 0
	}
	h.liveKeys.Add(isLive(new) - isLive(old))
	if old == nil {
		h.floor.objects.Add(1)
	}
}

// learn takes over a user or policy that was written.
func (h *HSM) learn(r *hsm.Record, o hsm.Object) {
	switch {
	case r.Kind == hsm.KindUser:
		if h.users.set(r, o) {
			h.sessions.end(r.Core.Owner, r.Hidden[registerVerifier].Value)
		}
	case r.Kind == hsm.KindPolicy && r.Ref == settingsRef:
		s := readSettings(r)
		h.settings.Store(&s)
	case r.Kind == hsm.KindPolicy && r.Ref == quorumRef:
		v, t := readQuorum(r), readTimeouts(r)
		h.quorum.Store(&v)
		h.timeouts.Store(&t)
	}
}

// Module returns the HSM as a caller sees it that has been authenticated as p:
// by a certificate (RoleHSM, RoleAppliance), or as nobody in particular
// (RoleNone). Closing the module does not close the HSM.
func (h *HSM) Module(p hsm.Principal) hsm.Module { return &module{h: h, who: p} }

// Synced records when the last round of server-side sync with all peers ended.
func (h *HSM) Synced(at time.Time) { h.lastSync.Store(at.UnixMilli()) }

// Close ends all sessions, waits for the calls in progress and closes the
// object store. Later calls fail with hsm.ErrUnavailable.
func (h *HSM) Close() error {
	if !h.gate.close() {
		return nil
	}
	h.sessions.endAll()
	var err error
	if h.store.check() == nil {
		err = h.writeFloor(true)
	}
	return errors.Join(err, h.store.close())
}

// enter begins a call; the caller defers done.
func (h *HSM) enter(ctx context.Context) (done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := h.store.check(); err != nil {
		return nil, err
	}
	if !h.gate.enter() {
		return nil, fmt.Errorf("%w: HSM %s is shut down", hsm.ErrUnavailable, h.opts.ID)
	}
	return h.gate.leave, nil
}

// gate counts calls in progress until it is closed.
type gate struct {
	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.calls.Add(1)
	return true
}

func (g *gate) leave() { g.calls.Done() }

// close lets nobody in any more and waits until all have left. It returns
// false if it was closed before.
func (g *gate) close() bool {
	g.mu.Lock()
	was := g.closed
	g.closed = true
	g.mu.Unlock()
	g.calls.Wait()
	return !was
}

func (h *HSM) info() hsm.Info {
	pending := h.InDoubt()
	i := hsm.Info{
		ID: h.opts.ID, Cluster: h.opts.Cluster, ClusterName: h.opts.ClusterName, Region: h.opts.Region, Zone: h.opts.Zone,
		Lineage: h.keys().Lineage(), Version: h.opts.Version, State: hsm.StateActive, Time: h.opts.Now().UTC(),
		Root: h.states[hsm.ScopeLineage].Root(), ClusterRoot: h.states[hsm.ScopeCluster].Root(),
		Keys: uint64(max(h.liveKeys.Load(), 0)), InDoubt: uint64(len(pending)), Doubts: doubts(pending), Sessions: h.sessions.count(),
		Started: h.started, Settings: *h.settings.Load(), Epochs: h.keys().Epochs(), Sealing: h.keys().Epoch(), Format: hsm.FormatVersion,
		Clock: h.clock.Latest(), Quorum: *h.quorum.Load(), Timeouts: *h.timeouts.Load(),
	}
	if ms := h.lastSync.Load(); ms != 0 {
		i.LastSync = time.UnixMilli(ms).UTC()
	}
	if h.store.check() != nil {
		i.State = hsm.StateDegraded
	}
	return i
}
