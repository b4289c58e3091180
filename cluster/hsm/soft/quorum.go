package soft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Quorum approval (../QUORUM.md): what an operation demands, and the checks.

var quorumRef = hsm.PolicyRef(hsm.PolicyQuorum)

// The registers of a user that hold public keys, SPKI; empty when they were taken away.
const (
	registerQuorumKey = "quorum-key"
	registerMFAKey    = "mfa-key"
)

// readQuorum reads the policy whose registers are the services. What is not a
// number is taken for the most there can be: nobody is let pass for it.
func readQuorum(r *hsm.Record) hsm.QuorumValues {
	value := func(s hsm.Service) int {
		text := r.Registers[string(s)].Value
		n, err := strconv.Atoi(string(text))
		switch {
		case len(text) == 0:
			return 1
		case err != nil || n < 1 || n > hsm.MaxQuorum:
			return hsm.MaxQuorum
		}
		return n
	}
	return hsm.QuorumValues{User: value(hsm.ServiceUser), Quorum: value(hsm.ServiceQuorum), Cluster: value(hsm.ServiceCluster)}
}

// demand is what an operation takes: need approvals by those who may approve.
// The zero demand is none.
type demand struct {
	service hsm.Service
	key     hsm.KeyRef
	need    int
	may     func(u user) bool
}

// userQuorum is what a change of a user takes. An HSM, which acts for its operator,
// and a user who changes its own password or registers its own keys need nobody.
func (s *session) userQuorum(c hsm.Change) demand {
	if s.who.Role == hsm.RoleHSM || s.isOwn(c) {
		return demand{}
	}
	return s.h.adminDemand(hsm.ServiceUser)
}

// clusterQuorum is what a change of the cluster takes: of its settings, custodians
// among them, of who is invited, and of whose certificates end. An HSM acts for its
// operator, and for the joiner that was invited.
func (s *session) clusterQuorum() demand {
	if s.who.Role == hsm.RoleHSM {
		return demand{}
	}
	return s.h.adminDemand(hsm.ServiceCluster)
}

// approvedChange makes a change of the cluster.
func (s *session) approvedChange(ctx context.Context, c hsm.Change, change func() (hsm.MaskedObject, error)) (m hsm.MaskedObject, err error) {
	err = s.withApproval(ctx, c.Approvals, s.clusterQuorum(), func() (err error) {
		m, err = change()
		return err
	})
	return m, err
}

// adminNeed is how many admins approve an operation of a service.
func adminNeed(service hsm.Service, v hsm.QuorumValues) int {
	switch service {
	case hsm.ServiceUser:
		return v.User
	case hsm.ServiceCluster:
		return v.Cluster
	}
	return v.Most()
}

func (h *HSM) adminDemand(service hsm.Service) demand {
	need := adminNeed(service, *h.quorum.Load())
	if need < 2 {
		return demand{}
	}
	return demand{service: service, need: need, may: func(u user) bool { return u.role == hsm.RoleAdmin }}
}

// keyQuorum is what a use of a key takes. Its owner and those it is shared with
// approve.
func (s *session) keyQuorum(r *hsm.Record, service hsm.Service) demand {
	need := r.QuorumValue(service)
	if need == 0 || r.Core.Class == hsm.ClassPublic {
		return demand{}
	}
	return demand{service: service, key: r.Ref, need: need, may: func(u user) bool {
		return u.role == hsm.RoleCryptoUser && (s.h.owns(u.name, r) || s.h.sharedWith(r, u.name))
	}}
}

// fitQuorum refuses quorum values that a new key cannot have: more than there are
// users to approve. A session key is its session's alone.
func fitQuorum(r *hsm.Record, token bool) error {
	for _, service := range []hsm.Service{hsm.ServiceKeyManagement, hsm.ServiceKeyUsage} {
		n := r.QuorumValue(service)
		if n == 0 {
			continue
		}
		users := 1 + len(r.Shares())
		switch {
		case !r.Core.Class.IsKey() || r.Core.Class == hsm.ClassPublic:
			return fmt.Errorf("%w: quorum values are for secret and private keys", hsm.ErrInvalid)
		case !token:
			return fmt.Errorf("%w: quorum values are for token keys", hsm.ErrInvalid)
		case n > users:
			return fmt.Errorf("%w: %d approvals of %s, but only %d users can have the key; share it with more when it is made", hsm.ErrInvalid, n, service, users)
		}
	}
	return nil
}

// notLower keeps a copy from having a lower quorum value than what it is a copy of.
func notLower(a hsm.Attribute, was, is string) error {
	before, _ := strconv.Atoi(was) // none: 0
	now, err := strconv.Atoi(is)
	if err == nil && now < before {
		return fmt.Errorf("%w: %s is %d, and no lower in a copy", hsm.ErrAttribute, a.Name, before)
	}
	return nil
}

// withApproval runs op if the demand is met, once for one token: the token is taken
// out of the table before op begins. If we die in op, the token died with this
// process, whether op was done or not. A token comes back only after errors that say
// that nothing was done.
func (s *session) withApproval(ctx context.Context, as []hsm.Approval, d demand, op func() error) error {
	if d.need == 0 {
		return op()
	}
	t, signers, err := s.approval(as, d)
	if err == nil {
		err = s.h.tokens.take(t.id)
	}
	s.audit(ctx, "quorum", d.key, fmt.Sprintf("%s needs %d, approved by %q", d.service, d.need, signers), err)
	if err != nil {
		return err
	}
	if err = op(); nothingDone(err) {
		s.h.tokens.giveBack(t.id)
	} else {
		s.h.tokens.spend(t.id)
	}
	return err
}

// nothingDone tells whether an error says that nothing was done, and that nothing
// was learned from a key.
func nothingDone(err error) bool {
	for _, is := range []error{hsm.ErrInvalid, hsm.ErrNotFound, hsm.ErrExist, hsm.ErrDenied, hsm.ErrAttribute, hsm.ErrTemplate, hsm.ErrLate, hsm.ErrDestroyed, hsm.ErrQuorum} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

func refuseQuorum(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{hsm.ErrQuorum}, args...)...)
}

// approval finds the token for a demand among those that came with an operation,
// and checks it and its signatures.
func (s *session) approval(as []hsm.Approval, d demand) (issued, []string, error) {
	var other error
	for _, a := range as {
		t, err := hsm.ParseQuorumToken(a.Token)
		switch {
		case err != nil:
			return issued{}, nil, refuseQuorum("%w", err)
		case t.Service != d.service || t.Key != d.key:
			other = refuseQuorum("the token is for %s of key %s", t.Service, t.Key)
			if !t.Service.OfKey() {
				other = refuseQuorum("the token is for service %s", t.Service)
			}
			continue
		}
		i, err := s.mine(t, a.Token)
		if err != nil {
			return issued{}, nil, err
		}
		signers, err := s.h.signers(a, d)
		if err != nil {
			return i, signers, err
		}
		s.h.tokens.approved(i.id, len(signers), d.need, s.h.opts.Now())
		if len(signers) < d.need {
			err = refuseQuorum("%d of %d users have approved", len(signers), d.need)
		}
		return i, signers, err
	}
	if other != nil {
		return issued{}, nil, fmt.Errorf("%w; this takes %s%s", other, d.service, ofKey(d.key))
	}
	return issued{}, nil, refuseQuorum("%d users approve a token of service %s%s", d.need, d.service, ofKey(d.key))
}

func ofKey(ref hsm.KeyRef) string {
	if ref == 0 {
		return ""
	}
	return fmt.Sprintf(" of key %s", ref)
}

// mine checks that this HSM has issued the token to this user, and that it may
// still be used.
func (s *session) mine(t hsm.QuorumToken, token []byte) (issued, error) {
	u, _ := s.h.users.get(s.who.Name)
	i, ok := s.h.tokens.get(token)
	switch {
	case t.Lineage != s.h.keys().Lineage() || t.Cluster != s.h.opts.Cluster:
		return i, refuseQuorum("the token is of another cluster, %s", t.Cluster)
	case t.HSM != s.h.opts.ID:
		return i, refuseQuorum("the token is of %s, and good there only", t.HSM)
	case t.Requester != s.who.Name:
		return i, refuseQuorum("the token is %q's", t.Requester)
	case !s.h.opts.Now().Before(t.Expires):
		return i, refuseQuorum("the token has expired; generate another one")
	case !ok:
		return i, refuseQuorum("the token is used up, or was withdrawn, or %s has started again since; generate another one", s.h.opts.ID)
	case !s.h.opts.Now().Before(i.end(*s.h.timeouts.Load())):
		return i, refuseQuorum("the token was approved more than %s ago and is void; generate another one", s.h.timeouts.Load().Approved)
	case !bytes.Equal(i.by, u.fingerprint()):
		return i, refuseQuorum("the token is from before a change of the user's password; generate another one")
	}
	return i, nil
}

// signers checks the signatures of an approval: each of another user who may
// approve now, with another key.
func (h *HSM) signers(a hsm.Approval, d demand) ([]string, error) {
	var names []string
	var keys [][]byte
	for _, sig := range a.Signatures {
		name, err := hsm.CanonicalUserName(sig.User)
		if err != nil {
			return names, refuseQuorum("%w", err)
		}
		u, ok := h.users.get(name)
		switch {
		case slices.Contains(names, name):
			return names, refuseQuorum("user %q has signed twice", name)
		case !ok:
			return names, refuseQuorum("there is no user %q", name)
		case !d.may(u):
			return names, refuseQuorum("%s %q may not approve this", u.role, name)
		case len(u.quorumKey) == 0:
			return names, refuseQuorum("user %q has no key to approve with (user change-quorum)", name)
		case slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, u.quorumKey) }):
			return names, refuseQuorum("the keys of two signers are the same")
		}
		key, err := hsm.ParseSignerKey(u.quorumKey)
		if err != nil || key.Verify(a.Token, sig.Signature) != nil {
			return names, refuseQuorum("the signature of user %q does not verify", name)
		}
		names, keys = append(names, name), append(keys, u.quorumKey)
	}
	return names, nil
}

// changeQuorum sets a quorum value of the cluster.
func (s *session) changeQuorum(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleAdmin {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin)
	}
	service := hsm.Service(c.Name)
	if !service.OfCluster() {
		return hsm.MaskedObject{}, fmt.Errorf("%w: service %.40q: want %s, %s or %s; the values of keys are set when they are made", hsm.ErrInvalid, c.Name, hsm.ServiceUser, hsm.ServiceQuorum, hsm.ServiceCluster)
	}
	value, err := strconv.Atoi(c.Value)
	if err != nil || value < 1 || value > hsm.MaxQuorum {
		return hsm.MaskedObject{}, fmt.Errorf("%w: quorum value %.40q: want 1 (none) to %d", hsm.ErrInvalid, c.Value, hsm.MaxQuorum)
	}
	s.h.users.deleting.Lock() // signers must not go meanwhile
	defer s.h.users.deleting.Unlock()
	if n := s.h.adminSigners(); value > 1 && n < value {
		return hsm.MaskedObject{}, fmt.Errorf("%w: %d admins have a key to approve with, fewer than %d; they register one with user change-quorum", hsm.ErrDenied, n, value)
	}
	var m hsm.MaskedObject
	err = s.withApproval(ctx, c.Approvals, s.h.adminDemand(hsm.ServiceQuorum), func() (err error) {
		m, err = s.h.setQuorum(c, string(service), strconv.Itoa(value))
		return err
	})
	return m, err
}

// setQuorum sets one register of the policy.
func (h *HSM) setQuorum(c hsm.Change, register, value string) (hsm.MaskedObject, error) {
	return h.update(hsm.ScopeLineage, quorumRef, func(cur *held) (*hsm.Record, error) {
		return h.withRegisters(cur, hsm.KindPolicy, quorumRef, hsm.PolicyQuorum, map[string][]byte{register: []byte(value)}, h.stampOf(c))
	})
}

func (h *HSM) adminSigners() (n int) {
	for _, u := range h.users.list() {
		if u.role == hsm.RoleAdmin && len(u.quorumKey) > 0 {
			n++
		}
	}
	return n
}

// maySpare keeps as many admins who can approve as the quorum values ask for:
// with fewer nobody could change anything any more. deleting is locked.
func (h *HSM) maySpare(u user) error {
	if n := h.quorum.Load().Most(); n > 1 && u.role == hsm.RoleAdmin && len(u.quorumKey) > 0 && h.adminSigners() <= n {
		return fmt.Errorf("%w: %d admins must be able to approve, and %q is one of the last; let another one register a key, or lower the quorum value", hsm.ErrDenied, n, u.name)
	}
	return nil
}

// changeSigner registers a key of a user, or takes it away.
func (h *HSM) changeSigner(c hsm.Change) (hsm.MaskedObject, error) {
	u, err := h.find(c)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	register, use := registerQuorumKey, hsm.SignQuorum
	if c.Kind == hsm.ChangeUserMFA {
		register, use = registerMFAKey, hsm.SignLogin
	}
	h.users.deleting.Lock()
	defer h.users.deleting.Unlock()
	if len(c.Public) > 0 {
		err = h.mayRegister(u, c, use)
	} else if use == hsm.SignQuorum {
		err = h.maySpare(u)
	}
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	return h.update(hsm.ScopeLineage, u.ref, func(cur *held) (*hsm.Record, error) {
		if err := h.stillThere(u, cur); err != nil {
			return nil, err
		}
		r, at := cur.rec.Clone(), h.stampOf(c)
		was := r.Registers[register]
		switch {
		case bytes.Equal(was.Value, c.Public):
			return nil, nil
		case len(was.Value) > 0 && len(c.Public) > 0:
			return nil, fmt.Errorf("%w: user %q has another key; an admin takes that away first", hsm.ErrExist, u.name)
		}
		if later, err := wins(at, was.Stamp); err != nil || !later {
			return nil, err
		}
		r.Set(register, bytes.Clone(c.Public), at)
		return r, nil
	})
}

// mayRegister checks a key and the proof that its user has the private half. A key
// is one user's, so that two approvals are of two keys.
func (h *HSM) mayRegister(u user, c hsm.Change, use hsm.SignerUse) error {
	key, err := hsm.ParseSignerKey(c.Public)
	if err != nil {
		return err
	}
	if key.Verify(hsm.RegistrationMessage(use, h.keys().Lineage(), u.name, c.Public), c.Proof) != nil {
		return fmt.Errorf("%w: user %q does not show possession of the key it registers", hsm.ErrDenied, u.name)
	}
	for _, o := range h.users.list() {
		if o.name != u.name && (bytes.Equal(o.quorumKey, c.Public) || bytes.Equal(o.mfaKey, c.Public)) {
			return fmt.Errorf("%w: the key is another user's", hsm.ErrExist)
		}
	}
	return nil
}
