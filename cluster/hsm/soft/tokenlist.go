package soft

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Tokens implements hsm.Session.
func (s *session) Tokens(ctx context.Context) ([]hsm.TokenInfo, error) {
	done, err := s.enter(ctx, hsm.RoleAdmin, hsm.RoleCryptoUser)
	if err != nil {
		return nil, err
	}
	defer done()
	now, timeouts := s.h.opts.Now(), *s.h.timeouts.Load()
	all := []hsm.TokenInfo{}
	for _, i := range s.h.tokens.waiting(now, timeouts) {
		if u, ok := s.h.users.get(i.token.Requester); !ok || !bytes.Equal(i.by, u.fingerprint()) {
			continue // void since the user was deleted, or has another password
		}
		all = append(all, s.tokenInfo(i, i.end(timeouts).Sub(now)))
	}
	return all, nil
}

func (s *session) tokenInfo(i issued, left time.Duration) hsm.TokenInfo {
	t := hsm.TokenInfo{
		Digest: i.id, Service: i.token.Service, Requester: i.token.Requester, Approvals: i.approvals, Left: left,
		Required: adminNeed(i.token.Service, *s.h.quorum.Load()),
	}
	if !t.Service.OfKey() {
		return t
	}
	if e, err := s.h.tokenKey(i.token.Key); err == nil {
		t.Required = e.rec.QuorumValue(t.Service)
	}
	if _, _, err := s.lookup(i.token.Key); err == nil {
		t.Key = i.token.Key
	}
	return t
}

// DeleteTokens implements hsm.Session.
func (s *session) DeleteTokens(ctx context.Context, all bool) (n int, err error) {
	done, err := s.enter(ctx, hsm.RoleAdmin)
	if err != nil {
		return 0, err
	}
	defer done()
	which := func(i issued) bool { return all || i.token.Requester == s.who.Name }
	n = s.h.tokens.withdraw(which, s.h.opts.Now(), *s.h.timeouts.Load())
	scope := "of this user"
	if all {
		scope = "of all"
	}
	s.audit(ctx, "quorum-token-delete", 0, fmt.Sprintf("%s: %d", scope, n), nil)
	return n, nil
}
