package sim

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// checker looks at every HSM past the network, and knows what clients were told.
// These hold at every moment:
//
//   - What an HSM has shown durable stays there, whatever it goes through, except
//     for the loss of its disk.
//   - An acknowledged token key is on at least as many HSMs as its policy wants
//     when it is acknowledged, and on at least one ever after, since fewer are lost
//     for good.
//   - What is destroyed on an HSM is never alive on it again.
//   - A reference has one birth, everywhere and for ever.
//   - A key that is not extractable stays so.
//   - Session keys are in no list of objects, on no disk, in no masked object; no
//     key material is in clear on a disk or in a masked object.
//   - A key that was used has been on enough HSMs.
//
// When the faults have stopped: all HSMs have equal roots within a bounded time,
// hold nothing in doubt, and no key whose creation failed; users are there, and log
// in with the password that was acknowledged last; keys have the label that was.
type checker struct {
	w *world

	mu       sync.Mutex
	births   map[hsm.KeyRef][16]byte
	ever     map[hsm.KeyRef]map[string]bool // boxes that have held a live key
	sessions map[hsm.KeyRef]bool            // session keys that were never promoted
	attempts map[string]*attempt            // by label
	keys     map[hsm.KeyRef]*acked
	macs     map[hsm.KeyRef]string
	wanted   map[hsm.KeyRef]*wish
	looks    int
}

// known is what an HSM holds.
type known struct {
	roots [2]hsm.Root
	keys  map[hsm.KeyRef]state
	users map[hsm.KeyRef]hsm.Digest
}

// state is what an HSM holds of a key.
type state struct {
	digest    hsm.Digest
	destroyed bool
	label     string
	// extractable is false once and for ever.
	extractable bool
}

// attempt is a creation that a client asked for.
type attempt struct {
	label   string
	began   time.Duration
	failed  bool // for sure, and for ever
	decided bool // otherwise it is under way, or its outcome unknown
}

// acked is a key whose creation was acknowledged.
type acked struct {
	label     string
	destroyed bool // its destruction was asked for
	buried    bool // its destruction was acknowledged
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, births: map[hsm.KeyRef][16]byte{}, ever: map[hsm.KeyRef]map[string]bool{}, sessions: map[hsm.KeyRef]bool{},
		attempts: map[string]*attempt{}, keys: map[hsm.KeyRef]*acked{}, macs: map[hsm.KeyRef]string{}, wanted: map[hsm.KeyRef]*wish{},
	}
}

// look compares an HSM with what it was.
func (c *checker) look(b *box) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.mu.Lock()
	eye := b.eye
	b.mu.Unlock()
	if eye == nil {
		return
	}
	info, err := eye.Info(context.Background())
	if err != nil {
		return // it has died meanwhile
	}
	roots := [2]hsm.Root{info.Root, info.ClusterRoot}
	if b.known.keys != nil && roots == b.known.roots {
		return
	}
	c.looks++
	now, err := c.list(b, eye)
	if err != nil {
		if b.hasDied(eye) {
			return
		}
		c.w.violate("%s cannot be listed: %v", b.name, err)
		return
	}
	now.roots = roots
	c.compare(b, now)
	b.known = now
	c.place(b, eye)
}

func (b *box) hasDied(eye hsm.Session) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.eye != eye || b.disk != nil && b.disk.full.Load() == noSpaceNow
}

// list reads what an HSM holds; what has not changed is not read again.
func (c *checker) list(b *box, eye hsm.Session) (known, error) {
	now := known{keys: map[hsm.KeyRef]state{}, users: map[hsm.KeyRef]hsm.Digest{}}
	var changed []hsm.KeyRef
	for o, err := range eye.Objects(context.Background()) {
		if err != nil {
			return now, err
		}
		if o.Kind != hsm.KindKey {
			now.users[o.Ref] = o.Digest
			continue
		}
		s := state{digest: o.Digest, destroyed: o.Tombstone}
		if was, ok := b.known.keys[o.Ref]; ok && was.digest == o.Digest {
			s = was
		} else {
			changed = append(changed, o.Ref)
		}
		now.keys[o.Ref] = s
	}
	for m, err := range eye.Extract(context.Background(), slices.Values(changed)) {
		if err != nil {
			return now, err
		}
		r, err := c.w.keyring.Unmask(m)
		if err != nil {
			return now, err
		}
		c.born(b, r)
		s := now.keys[m.Ref]
		s.digest, s.destroyed, s.label = m.Digest, r.Destroyed, string(r.Registers[hsm.AttributeRegister("label")].Value)
		s.extractable = r.Flag("extractable")
		now.keys[m.Ref] = s
	}
	return now, nil
}

// born checks that a reference has one birth.
func (c *checker) born(b *box, r *hsm.Record) {
	if was, ok := c.births[r.Ref]; ok && was != r.Birth {
		c.w.violate("%s: reference %s has two births", b.name, r.Ref)
	}
	c.births[r.Ref] = r.Birth
}

func (c *checker) compare(b *box, now known) {
	for _, ref := range slices.Sorted(maps.Keys(b.known.keys)) {
		was := b.known.keys[ref]
		s, ok := now.keys[ref]
		switch {
		case !ok:
			c.w.violate("%s has lost key %s (%s)", b.name, ref, was.label)
		case was.destroyed && !s.destroyed:
			c.w.violate("%s: destroyed key %s is back", b.name, ref)
		case !was.destroyed && !s.destroyed && !was.extractable && s.extractable:
			c.w.violate("%s: key %s is extractable again", b.name, ref)
		}
	}
	for ref := range b.known.users {
		if _, ok := now.users[ref]; !ok {
			c.w.violate("%s has lost user or policy %s", b.name, ref)
		}
	}
	for ref, s := range now.keys {
		switch {
		case c.sessions[ref]:
			c.w.violate("%s lists session key %s", b.name, ref)
		case strings.HasPrefix(s.label, string(sessionLabel)):
			c.w.violate("%s lists session key %s (%s)", b.name, ref, s.label)
		}
		if !s.destroyed {
			if c.ever[ref] == nil {
				c.ever[ref] = map[string]bool{}
			}
			c.ever[ref][b.name] = true
		}
	}
}

// rolledBack forgets what an HSM has shown: its disk is another one.
func (c *checker) rolledBack(b *box) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.known = known{}
}

// onTheWire looks at masked objects on their way.
func (c *checker) onTheWire(objects ...hsm.MaskedObject) {
	for _, m := range objects {
		for _, secret := range [][]byte{clearMaterial, sessionLabel} {
			if bytes.Contains(m.Bytes, secret) {
				c.w.violate("%q is in the masked object of %s", secret, m.Ref)
			}
		}
	}
}

// begins notes that a creation is asked for.
func (c *checker) begins(label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attempts[label] = &attempt{label: label, began: c.w.trace.now()}
}

// created notes the acknowledgement of a key, and checks that it holds.
func (c *checker) created(r *region, label string, ref hsm.KeyRef, copies int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.attempts[label]; a != nil {
		a.decided = true
	}
	delete(c.sessions, ref)
	if c.keys[ref] == nil {
		c.keys[ref] = &acked{label: label}
	}
	n, removed := 0, 0
	for name := range c.ever[ref] { // those that have lost it since are counted
		switch {
		case !r.owns(name):
		case c.wasRemoved(r, name, label):
			removed++
		default:
			n++
		}
	}
	switch {
	case n >= copies:
	case n+removed >= copies:
		c.w.violate("key %s (%s) is acknowledged and on %d HSMs, %d are wanted; an HSM counts although it was removed", ref, label, n, copies)
	default:
		c.w.violate("key %s (%s) is acknowledged and on %d HSMs, %d are wanted", ref, label, n, copies)
	}
}

// failed notes that a creation failed, for sure.
func (c *checker) failed(label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.attempts[label]
	a.decided, a.failed = true, true
}

// session notes a key that stays where it is.
func (c *checker) session(ref hsm.KeyRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[ref] = true
}

// promotes notes that a session key may become a token key from now on.
func (c *checker) promotes(ref hsm.KeyRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, ref)
}

// destroys notes that a destruction is asked for; done, that it was acknowledged.
func (c *checker) destroys(ref hsm.KeyRef, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.keys[ref]; k != nil {
		k.destroyed, k.buried = true, k.buried || done
	}
}

// holders counts the HSMs on whose disks a key is.
func (c *checker) holders(r *region, ref hsm.KeyRef) (n int) {
	for _, b := range r.members() {
		if s, ok := b.known.keys[ref]; ok && !s.destroyed {
			n++
		}
	}
	return n
}

// used checks that a key that worked was on enough HSMs, and that it is the same
// key wherever it works.
func (c *checker) used(ref hsm.KeyRef, mac string, copies int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.ever[ref]); n < copies {
		c.w.violate("key %s worked and has been on %d HSMs, %d are wanted", ref, n, copies)
	}
	if was, ok := c.macs[ref]; ok && was != mac {
		c.w.violate("key %s computes %s, and %s before", ref, mac, was)
	}
	c.macs[ref] = mac
}

// safe checks that no acknowledged key is lost.
func (c *checker) safe(r *region) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nothingLost(r)
}

func (c *checker) nothingLost(r *region) {
	for _, ref := range slices.Sorted(maps.Keys(c.keys)) {
		if k := c.keys[ref]; !k.destroyed && c.holders(r, ref) == 0 && r.owns(k.label) {
			c.w.violate("acknowledged key %s (%s) is lost", ref, k.label)
		}
	}
}

// settled checks what holds when all HSMs hold the same.
func (c *checker) settled(r *region) {
	c.safe(r)
	c.places(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range r.members() {
		for _, ref := range slices.Sorted(maps.Keys(b.known.keys)) {
			s := b.known.keys[ref]
			k, a := c.keys[ref], c.attempts[strings.TrimSuffix(s.label, "-changed")]
			switch {
			case s.destroyed:
				if k != nil && !k.destroyed {
					c.w.violate("%s: acknowledged key %s (%s) is destroyed, and nobody asked for it", b.name, ref, k.label)
				}
			case k != nil && k.buried:
				c.w.violate("%s: key %s (%s) is alive after its destruction was acknowledged", b.name, ref, k.label)
			case k == nil && a == nil:
				c.w.violate("%s: key %s (%s) was made by nobody", b.name, ref, s.label)
			case k == nil && a.failed:
				c.w.violate("%s: key %s (%s) is there, though its creation failed", b.name, ref, s.label)
			}
		}
	}
}

// differences tells in which ways the HSMs of a region do not agree yet.
func (c *checker) differences(r *region) (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first *hsm.Info
	known := "" // to the first
	for _, b := range r.members() {
		b.mu.Lock()
		eye, h := b.eye, b.soft
		b.mu.Unlock()
		if eye == nil {
			out = append(out, b.name+" is down")
			continue
		}
		info, err := eye.Info(context.Background())
		if err != nil {
			out = append(out, fmt.Sprintf("%s: %v", b.name, err))
			continue
		}
		if n := len(h.InDoubt()); n > 0 {
			out = append(out, fmt.Sprintf("%s has %d operations in doubt", b.name, n))
		}
		if first == nil {
			first, known = &info, listed(eye)
		}
		if info.Root != first.Root || info.ClusterRoot != first.ClusterRoot {
			out = append(out, fmt.Sprintf("%s has another root (keys: %t) and lists %s; the first HSM %s", b.name, info.Root != first.Root, listed(eye), known))
		}
	}
	return out
}

// listed is what an HSM knows of the members.
func listed(eye hsm.Session) string {
	members, err := eye.Members(context.Background())
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%+v", members)
}
