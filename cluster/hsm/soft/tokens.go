package soft

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// tokenTable holds the quorum tokens that this HSM has issued and that are not
// spent, in memory alone. So a token is spent at most once whatever happens: no other
// HSM takes it, and neither does this one after it has stopped, was set back to an
// older disk image, or was copied.
type tokenTable struct {
	mu   sync.Mutex
	live map[[sha256.Size]byte]issued
}

// issued is one token.
type issued struct {
	id    [sha256.Size]byte
	token hsm.QuorumToken
	by    []byte // fingerprint of the requester: this user, with this password

	approvals int       // seen in the last attempt
	approved  time.Time // when they were enough for the first time; zero: never
	taken     bool      // its operation is under way
}

// end is when the token is void.
func (i issued) end(t hsm.QuorumTimeouts) time.Time {
	if by := i.approved.Add(t.Approved); !i.approved.IsZero() && by.Before(i.token.Expires) {
		return by
	}
	return i.token.Expires
}

// Token implements hsm.Session.
func (s *session) Token(ctx context.Context, service hsm.Service, key hsm.KeyRef) (token []byte, err error) {
	done, err := s.enter(ctx, hsm.RoleAdmin, hsm.RoleCryptoUser)
	if err != nil {
		return nil, err
	}
	defer done()
	defer func() { s.audit(ctx, "quorum-token", key, string(service), err) }()
	if err := s.mayAsk(service, key); err != nil {
		return nil, err
	}
	u, ok := s.h.users.get(s.who.Name)
	if !ok {
		return nil, fmt.Errorf("%w: user %q was deleted", hsm.ErrSession, s.who.Name)
	}
	now := s.h.opts.Now().UTC().Truncate(time.Millisecond)
	t := hsm.QuorumToken{
		Service: service, Key: key, Requester: u.name, HSM: s.h.opts.ID, Cluster: s.h.opts.Cluster, Lineage: s.h.keys().Lineage(),
		Issued: now, Expires: now.Add(s.h.timeouts.Load().Generated),
	}
	rand.Read(t.Nonce[:])
	token = t.Encode()
	return token, s.h.tokens.add(issued{id: hsm.TokenDigest(token), token: t, by: u.fingerprint()}, now, *s.h.timeouts.Load())
}

// mayAsk checks that a token is of use to this user.
func (s *session) mayAsk(service hsm.Service, key hsm.KeyRef) error {
	if _, err := hsm.ParseService(string(service)); err != nil {
		return err
	}
	if !service.OfKey() {
		if key != 0 {
			return fmt.Errorf("%w: service %s is not of a key", hsm.ErrInvalid, service)
		}
		return s.allow(hsm.RoleAdmin)
	}
	if err := s.allow(hsm.RoleCryptoUser); err != nil {
		return err
	}
	e, a, err := s.lookup(key)
	switch {
	case err != nil:
		return err
	case a < accessUse || service == hsm.ServiceKeyManagement && a < accessOwner:
		return fmt.Errorf("%w: key %s belongs to %q", hsm.ErrDenied, key, e.rec.Core.Owner)
	case e.rec.QuorumValue(service) == 0:
		return fmt.Errorf("%w: key %s takes no approval for %s", hsm.ErrInvalid, key, service)
	}
	return nil
}

// add takes up a token. Void ones go, and of the services of the cluster the one
// that the user had.
func (t *tokenTable) add(i issued, now time.Time, timeouts hsm.QuorumTimeouts) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = map[[sha256.Size]byte]issued{}
	}
	users := 0
	for id, o := range t.live {
		same := o.token.Requester == i.token.Requester
		switch {
		case !now.Before(o.end(timeouts)), same && !i.token.Service.OfKey() && o.token.Service == i.token.Service:
			delete(t.live, id)
		case same:
			users++
		}
	}
	if len(t.live) >= hsm.MaxTokens || users >= hsm.MaxUserTokens {
		return fmt.Errorf("%w: %d quorum tokens are waiting, %d of them of user %q; use them, or wait until they expire", hsm.ErrDenied, len(t.live), users, i.token.Requester)
	}
	t.live[i.id] = i
	return nil
}

func (t *tokenTable) get(token []byte) (issued, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.live[hsm.TokenDigest(token)]
	return i, ok && !i.taken && bytes.Equal(i.token.Encode(), token)
}

// approved notes how many have approved a token, of those that it needs.
func (t *tokenTable) approved(id [sha256.Size]byte, n, need int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.live[id]
	if !ok {
		return
	}
	if i.approvals = n; n >= need && i.approved.IsZero() {
		i.approved = now
	}
	t.live[id] = i
}

// take takes a token for its operation. ErrQuorum if somebody else has, or it was
// withdrawn. From here on it is good for nothing else, unless giveBack follows.
func (t *tokenTable) take(id [sha256.Size]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.live[id]
	if !ok || i.taken {
		return refuseQuorum("the token is used up, or was withdrawn; generate another one")
	}
	i.taken = true
	t.live[id] = i
	return nil
}

// spend ends a token whose operation was done.
func (t *tokenTable) spend(id [sha256.Size]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, id)
}

// giveBack makes a token good again that was taken for nothing, unless it was
// withdrawn meanwhile.
func (t *tokenTable) giveBack(id [sha256.Size]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, ok := t.live[id]; ok {
		i.taken = false
		t.live[id] = i
	}
}

// waiting returns the tokens that are neither void nor taken, oldest first.
func (t *tokenTable) waiting(now time.Time, timeouts hsm.QuorumTimeouts) (all []issued) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.live {
		if !i.taken && now.Before(i.end(timeouts)) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b issued) int {
		return cmp.Or(a.token.Issued.Compare(b.token.Issued), bytes.Compare(a.id[:], b.id[:]))
	})
	return all
}

// withdraw removes tokens, taken ones too, and counts those that were waiting.
func (t *tokenTable) withdraw(which func(i issued) bool, now time.Time, timeouts hsm.QuorumTimeouts) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, i := range t.live {
		if !which(i) {
			continue
		}
		delete(t.live, id)
		if !i.taken && now.Before(i.end(timeouts)) {
			n++
		}
	}
	return n
}
