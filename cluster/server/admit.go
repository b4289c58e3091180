package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// voteTimeout bounds how long other HSMs are waited for that vote on a token.
const voteTimeout = 5 * time.Second

// admit lets a new HSM in. The caller has proved that it holds the token of an
// invitation; it gets a certificate for its own key, and the lineage's keys sealed
// to its own recipient.
//
// Every step can be repeated by the same joiner, with the same keys, until it has
// joined; nobody else gets anything for the token once a majority of its voters
// has recorded the first claim (hsm.Invite). If we die:
// before the majority, nobody has got anything, and the same joiner may ask again;
// after it and before the member is written, the same;
// after that the cluster lists a member that is JOINING, which counts nowhere,
// until it has run, or an admin removes it.
func (s *Server) admit(ctx context.Context, invite string, r rpc.JoinRequest) (rpc.JoinReply, error) {
	reply, err := s.admitted(ctx, invite, r)
	who := hsm.Principal{Name: r.Joiner.String()}
	s.device.record("join", who, 0, fmt.Sprintf("invitation %s, %s at %s", invite, r.Name, r.Address), err)
	if err != nil {
		s.options.Log.Warn("HSM refused to join", "hsm", r.Joiner.String(), "error", err)
		return rpc.JoinReply{}, err
	}
	s.options.Log.Info("HSM let in", "hsm", r.Joiner.String(), "address", r.Address)
	return reply, nil
}

func (s *Server) admitted(ctx context.Context, invite string, r rpc.JoinRequest) (rpc.JoinReply, error) {
	done, err := s.takes()
	if err != nil {
		return rpc.JoinReply{}, err
	}
	defer done()
	if err := s.recordable(); err != nil {
		return rpc.JoinReply{}, err
	}
	id, err := hsm.ParseInviteID(invite)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	i, err := s.device.soft.Invite(ctx, id)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	claim, err := claimOf(r)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	if rival, used := i.Rival(claim); used {
		return rpc.JoinReply{}, usedBy(rival)
	}
	m, err := s.newcomer(i, r)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	// Before the member is written: a rotation waits for every member, and this one
	// would wait for the rotation.
	if err := noRotation(s.keyring()); err != nil {
		return rpc.JoinReply{}, err
	}
	if err := s.elect(ctx, i, claim); err != nil {
		return rpc.JoinReply{}, err
	}
	if _, err := s.device.self.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
		return rpc.JoinReply{}, err
	}
	// Peers that are away learn of it from server-side sync.
	if err := s.sync.tell(ctx, hsm.MemberRef(m.ID), hsm.InviteRef(i.ID)); err != nil {
		s.options.Log.Warn("some HSMs do not know yet of the one that joins", "hsm", m.ID.String(), "error", err)
	}
	return s.welcome(ctx, m, r)
}

func usedBy(rival hsm.Claim) error {
	return fmt.Errorf("%w: the token was used by %s; a token is good for one HSM: invite again", hsm.ErrDenied, rival.Joiner)
}

// claimOf fingerprints the keys that a joiner shows: whoever repeats a request
// under the same claim has the same ones, and opens what is sealed to them.
func claimOf(r rpc.JoinRequest) (hsm.Claim, error) {
	key, err := pki.RequestKey(r.Request)
	if err != nil {
		return hsm.Claim{}, fmt.Errorf("signing request of %s: %w", r.Joiner, err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return hsm.Claim{}, fmt.Errorf("%w: signing request of %s: its key does not encode", hsm.ErrInvalid, r.Joiner)
	}
	h := sha256.New()
	fmt.Fprintf(h, "hsmbackup join v1\x00%d:%s%d:%s", len(der), der, len(r.Recipient), r.Recipient)
	return hsm.Claim{Joiner: r.Joiner, Proof: [32]byte(h.Sum(nil))}, nil
}

// newcomer checks the member that the joiner wants to be.
func (s *Server) newcomer(i *hsm.Invite, r rpc.JoinRequest) (hsm.Member, error) {
	if err := checkAddress(r.Address); err != nil {
		return hsm.Member{}, err
	}
	now := s.place.now.Load()
	m := hsm.Member{ID: r.Joiner, Name: r.Name, Address: r.Address, Zone: r.Zone, Joining: true, Replaces: i.Replaces}
	count, names := 0, map[string]bool{}
	for _, other := range now.members {
		switch {
		case other.ID == m.ID && other.Removed:
			return m, removed(m.ID)
		case other.ID == m.ID && !other.Joining:
			return m, fmt.Errorf("%w: %s has joined already, and the token was used; start it with hsm serve", hsm.ErrDenied, m.ID)
		case other.ID == m.ID || other.Removed:
			continue
		case other.ID == i.Replaces: // its name and address are free
			continue
		case other.Address == m.Address:
			return m, fmt.Errorf("%w: address %s is that of %s %s; give another, or remove that HSM first", hsm.ErrInvalid, m.Address, other.Name, other.ID)
		default:
			count++
		}
		names[other.Name] = true
	}
	if count >= maxHSMs {
		return m, fmt.Errorf("%w: the cluster has %d HSMs, and can have no more", hsm.ErrDenied, count)
	}
	if m.Name != "" && names[m.Name] {
		return m, fmt.Errorf("%w: there is an HSM called %s; give another --name", hsm.ErrInvalid, m.Name)
	}
	for n := len(now.members) + 1; m.Name == ""; n++ {
		if name := fmt.Sprintf("hsm-%d", n); !names[name] {
			m.Name, m.Zone = name, cmp.Or(m.Zone, fmt.Sprintf("zone-%d", n))
		}
	}
	m.Zone = cmp.Or(m.Zone, "zone-"+m.Name)
	return m, nil
}

// elect has a majority of the token's voters record the claim, or fails: denied
// if another joiner was first, or if so many of the voters were removed since that there
// never is a majority. Nobody votes in the place of one that was removed, since it may have
// voted for another joiner.
func (s *Server) elect(ctx context.Context, i *hsm.Invite, c hsm.Claim) error {
	vote := hsm.Change{Kind: hsm.ChangeClaim, Ref: hsm.InviteRef(i.ID), Claim: &c}
	if _, err := s.device.self.Change(ctx, vote); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	voted := &atomic.Int64{}
	refusal := s.sync.poll(ctx, i.Voters, func(ctx context.Context, peer hsm.Session) error {
		if err := s.sync.give(ctx, peer, vote.Ref); err != nil {
			return err
		}
		m, err := peer.Change(ctx, vote)
		if err != nil {
			return err
		}
		_, err = s.device.self.Scoped(hsm.ScopeCluster).Insert(ctx, one(m))
		if err == nil {
			voted.Add(1)
		}
		return err
	})
	now, err := s.device.soft.FindInvite(ctx, i.ID)
	switch {
	case err != nil:
		return err
	case now.Won(c):
		return nil
	case errors.Is(refusal, hsm.ErrDenied):
		return refusal
	}
	if rival, used := now.Rival(c); used {
		return usedBy(rival)
	}
	if err := s.spent(i, int(voted.Load())); err != nil {
		return err
	}
	return errors.Join(fmt.Errorf("%w: the token needs the votes of more than half of %d HSMs, and too few answer; start them, or invite again after hsm remove --force", hsm.ErrUnavailable, len(i.Voters)), refusal)
}

// spent refuses a token for good when all of its voters have voted that are not removed,
// voted of them beside this HSM, and they were too few.
func (s *Server) spent(i *hsm.Invite, voted int) error {
	members, removed := s.place.now.Load().members, 0
	for _, v := range i.Voters {
		switch {
		case members[v].Removed:
			removed++
		case v == s.config.ID:
			voted++
		}
	}
	if voted+removed < len(i.Voters) {
		return nil
	}
	return fmt.Errorf("%w: the token needs the votes of more than half of %d HSMs, and %d of them were removed since; invite again", hsm.ErrDenied, len(i.Voters), removed)
}

// noRotation refuses while a masking key does not seal yet.
func noRotation(k *hsm.Keyring) error {
	if newest(k) != k.Epoch() {
		return fmt.Errorf("%w: a rotation of the masking key is under way; try again in a moment", hsm.ErrUnavailable)
	}
	return nil
}

// one is a sequence of one masked object.
func one(m hsm.MaskedObject) func(func(hsm.MaskedObject, error) bool) {
	return func(yield func(hsm.MaskedObject, error) bool) { yield(m, nil) }
}

// welcome makes what the new HSM gets.
func (s *Server) welcome(ctx context.Context, m hsm.Member, r rpc.JoinRequest) (rpc.JoinReply, error) {
	ca, err := pki.ParseAuthority(s.secrets.ca)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	cert, err := ca.IssueFor(r.Request, pki.HSMIdentity(s.config.Cluster, m.ID), CertificateLife)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	k := s.keyring()
	if err := noRotation(k); err != nil {
		return rpc.JoinReply{}, err
	}
	recovery := hsm.EncodeRecovery(k, s.secrets.ca)
	defer recovery.Wipe()
	sealed, err := seal.SealTo(r.Recipient, recovery)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	members, err := s.device.self.Members(ctx)
	if err != nil {
		return rpc.JoinReply{}, err
	}
	return rpc.JoinReply{
		Certificate: cert, CA: bytes.Clone(ca.CertPEM()), Sealed: sealed, Cluster: s.config.Cluster, ClusterName: s.config.ClusterName,
		Region: s.config.Region, Lineage: s.config.Lineage, Members: slices.DeleteFunc(members, func(m hsm.Member) bool { return m.Removed }),
	}, nil
}
