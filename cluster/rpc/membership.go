package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// What members say to each other, and to one that joins, beside the contract of
// package hsm.

// Issuer is a session that makes certificates: on the other side of the network
// it is the Module's session that implements it, if it does.
type Issuer interface {
	// Issue makes a certificate of a kind and name for whoever made the signing
	// request (PKCS #10, PEM). Admin.
	Issue(ctx context.Context, kind pki.Kind, name string, request []byte, validity time.Duration) (certPEM []byte, err error)
}

// JoinRequest is what a new HSM shows with its one-time token.
type JoinRequest struct {
	Joiner    hsm.HSMID
	Request   []byte // PKCS #10, PEM: its TLS key
	Recipient string // age: to whom the keys are sealed
	Name      string
	Address   string
	Zone      string
}

// JoinReply is what it gets.
type JoinReply struct {
	Certificate, CA []byte // PEM
	Sealed          []byte // hsm.EncodeRecovery, sealed to the recipient
	Cluster         hsm.ClusterID
	ClusterName     string
	Region          string
	Lineage         hsm.Lineage
	Members         []hsm.Member
}

// WithJoin lets joiners in: handle is called with the invitation whose key the
// caller's connection was made with (pki.WithJoin).
func WithJoin(handle func(ctx context.Context, invite string, r JoinRequest) (JoinReply, error)) ServerOption {
	return func(s *Server) { s.join = handle }
}

// Join implements the service.
func (v *service) Join(ctx context.Context, p *pb.JoinRequest) (*pb.JoinReply, error) {
	c, err := connectionOf(ctx)
	if err != nil {
		return nil, err
	}
	if c.identity.Kind != pki.KindJoiner || v.server.join == nil {
		return nil, fmt.Errorf("%w: %s %s comes without a join token", hsm.ErrDenied, c.identity.Kind, c.identity.Name)
	}
	ch := &checker{}
	ch.count("bytes of the signing request", len(p.GetRequest()), maxValue)
	r := JoinRequest{
		Joiner: hsm.HSMID(p.GetJoiner()), Request: p.GetRequest(), Recipient: ch.text("recipient", p.GetRecipient(), maxRecipient),
		Name: ch.name("name", p.GetName()), Address: ch.name("address", p.GetAddress()), Zone: ch.name("zone", p.GetZone()),
	}
	if r.Joiner == 0 {
		ch.fail("a joiner without an id")
	}
	if ch.err != nil {
		return nil, ch.err
	}
	reply, err := v.server.join(ctx, c.identity.Name, r)
	if err != nil {
		return nil, err
	}
	return &pb.JoinReply{
		Certificate: reply.Certificate, Ca: reply.CA, Sealed: reply.Sealed, Cluster: uint64(reply.Cluster), ClusterName: reply.ClusterName,
		Region: reply.Region, Lineage: reply.Lineage[:], Members: toMembers(reply.Members).Members,
	}, nil
}

// Join asks the HSM at an address to let this one in. cfg comes from
// pki.JoinConfig. Errors are as those of Dial, and those of the HSM.
func Join(ctx context.Context, address string, cfg *tls.Config, r JoinRequest, opts ...DialOption) (JoinReply, error) {
	dialled, err := Dial(ctx, address, cfg, opts...)
	if err != nil {
		return JoinReply{}, err
	}
	m := dialled.(*module)
	defer m.Close()
	p, err := m.api.Join(ctx, &pb.JoinRequest{
		Joiner: uint64(r.Joiner), Request: r.Request, Recipient: r.Recipient, Name: r.Name, Address: r.Address, Zone: r.Zone,
	})
	if err != nil {
		return JoinReply{}, m.fail(ctx, err)
	}
	c := &checker{}
	c.count("bytes of the certificate", len(p.GetCertificate()), maxCertificates)
	c.count("bytes of the CA's certificate", len(p.GetCa()), maxCertificates)
	c.count("bytes of the sealed keys", len(p.GetSealed()), maxSealed)
	members, err := fromMembers(&pb.MembersReply{Members: p.GetMembers()})
	c.note(err)
	reply := JoinReply{
		Certificate: p.GetCertificate(), CA: p.GetCa(), Sealed: p.GetSealed(), Cluster: hsm.ClusterID(p.GetCluster()),
		ClusterName: c.name("cluster name", p.GetClusterName()), Region: c.name("region", p.GetRegion()),
		Lineage: fixed[hsm.Lineage](c, "lineage", p.GetLineage()), Members: members,
	}
	if c.err != nil {
		return JoinReply{}, fmt.Errorf("answer of the HSM at %s: %w", address, c.err)
	}
	return reply, nil
}

func (*service) Issue(ctx context.Context, p *pb.IssueRequest) (*pb.IssueReply, error) {
	c := &checker{}
	c.count("bytes of the signing request", len(p.GetRequest()), maxValue)
	kind, name := pki.Kind(c.word("kind", p.GetKind())), c.name("name", p.GetName())
	return unary(ctx, p, c.err, func(s hsm.Session, p *pb.IssueRequest) (*pb.IssueReply, error) {
		issuer, ok := s.(Issuer)
		if !ok {
			return nil, fmt.Errorf("%w: this HSM issues no certificates", hsm.ErrDenied)
		}
		cert, err := issuer.Issue(ctx, kind, name, p.GetRequest(), time.Duration(p.GetValidity()))
		return &pb.IssueReply{Certificate: cert}, err
	})
}

// Issue implements Issuer.
func (s *session) Issue(ctx context.Context, kind pki.Kind, name string, request []byte, validity time.Duration) ([]byte, error) {
	req := &pb.IssueRequest{Kind: string(kind), Name: name, Request: request, Validity: int64(validity)}
	return ask(ctx, &s.replica, s.replica.api.Issue, req, func(p *pb.IssueReply) ([]byte, error) {
		if n := len(p.GetCertificate()); n == 0 || n > maxCertificates {
			return nil, invalid("certificate of %d bytes", n)
		}
		return p.GetCertificate(), nil
	})
}

// BootID names one start of an HSM; it is random.
type BootID [16]byte

// Boot is one start of an HSM, and how far its object store was at the end.
type Boot struct {
	ID     BootID
	Writes uint64
}

// Greeting is what an HSM tells a peer in every round of server-side sync.
type Greeting struct {
	Boot     Boot     // this start, and how far the store is now
	Before   []Boot   // earlier starts, the latest first
	Echo     [16]byte // the nonce of the peer's last answer; zero: none
	CaughtUp bool     // since the peer said Behind, everything it has was pulled
}

// Greeted is the peer's answer.
type Greeted struct {
	Info      hsm.Info
	Nonce     [16]byte // to be echoed: whoever does is alive now
	Duplicate bool     // another process lives under the caller's identity
	Behind    bool     // the caller's store is older than what the peer has seen of it
	Lost      uint64   // changes that it is behind by; 0: not known
}

// Greeter is a session of an HSM that greets.
type Greeter interface {
	Greet(ctx context.Context, g Greeting) (Greeted, error)
}

// maxBoots bounds the earlier starts in a greeting.
const maxBoots = 64

func (*service) Greet(ctx context.Context, p *pb.GreetRequest) (*pb.GreetReply, error) {
	g, err := fromGreeting(p)
	return unary(ctx, g, err, func(s hsm.Session, g Greeting) (*pb.GreetReply, error) {
		greeter, ok := s.(Greeter)
		if !ok {
			return nil, fmt.Errorf("%w: this HSM greets nobody", hsm.ErrDenied)
		}
		r, err := greeter.Greet(ctx, g)
		return &pb.GreetReply{Info: briefly(toInfo(r.Info)), Nonce: r.Nonce[:], Duplicate: r.Duplicate, Behind: r.Behind, Lost: r.Lost}, err
	})
}

func fromGreeting(p *pb.GreetRequest) (Greeting, error) {
	c := &checker{}
	c.count("earlier starts", len(p.GetBefore()), maxBoots)
	g := Greeting{Boot: Boot{fixed[BootID](c, "start", p.GetBoot()), p.GetWrites()}, CaughtUp: p.GetCaughtUp()}
	if len(p.GetEcho()) > 0 {
		g.Echo = fixed[[16]byte](c, "echo", p.GetEcho())
	}
	for _, b := range p.GetBefore() {
		g.Before = append(g.Before, Boot{fixed[BootID](c, "start", b.GetId()), b.GetWrites()})
	}
	return g, c.err
}

// Greet implements Greeter.
func (s *session) Greet(ctx context.Context, g Greeting) (Greeted, error) {
	req := &pb.GreetRequest{Boot: g.Boot.ID[:], Writes: g.Boot.Writes, CaughtUp: g.CaughtUp}
	if g.Echo != [16]byte{} {
		req.Echo = g.Echo[:]
	}
	for _, b := range g.Before[:min(len(g.Before), maxBoots)] {
		req.Before = append(req.Before, &pb.Boot{Id: b.ID[:], Writes: b.Writes})
	}
	return ask(ctx, &s.replica, s.replica.api.Greet, req, func(p *pb.GreetReply) (Greeted, error) {
		c := &checker{}
		info, err := fromInfo(p.GetInfo())
		r := Greeted{Info: info, Nonce: fixed[[16]byte](c, "nonce", p.GetNonce()), Duplicate: p.GetDuplicate(), Behind: p.GetBehind(), Lost: p.GetLost()}
		return r, errors.Join(err, c.err)
	})
}

func toInvite(i *hsm.Invite) *pb.Invite {
	if i == nil {
		return nil
	}
	return &pb.Invite{Id: i.ID[:], Key: i.Key[:], Expires: i.Expires.UnixMilli(), Voters: toRefs(i.Voters), Replaces: uint64(i.Replaces)}
}

func fromInvite(c *checker, p *pb.Invite) *hsm.Invite {
	if p == nil {
		return nil
	}
	c.count("voters", len(p.GetVoters()), maxMembers)
	i := &hsm.Invite{
		ID: fixed[hsm.InviteID](c, "invitation", p.GetId()), Key: fixed32(c, "key of an invitation", p.GetKey()),
		Expires: time.UnixMilli(p.GetExpires()).UTC(), Replaces: hsm.HSMID(p.GetReplaces()),
	}
	for _, v := range p.GetVoters() {
		i.Voters = append(i.Voters, hsm.HSMID(v))
	}
	return i
}

func toClaim(claim *hsm.Claim) *pb.Claim {
	if claim == nil {
		return nil
	}
	return &pb.Claim{Joiner: uint64(claim.Joiner), Proof: claim.Proof[:]}
}

func fromClaim(c *checker, p *pb.Claim) *hsm.Claim {
	if p == nil {
		return nil
	}
	return &hsm.Claim{Joiner: hsm.HSMID(p.GetJoiner()), Proof: fixed32(c, "proof of a claim", p.GetProof())}
}

func toRevocation(r *hsm.Revocation) *pb.Revocation {
	if r == nil {
		return nil
	}
	return &pb.Revocation{Kind: r.Kind, Name: r.Name, Until: r.Until.UnixMilli()}
}

func fromRevocation(c *checker, p *pb.Revocation) *hsm.Revocation {
	if p == nil {
		return nil
	}
	return &hsm.Revocation{Kind: c.word("kind of certificate", p.GetKind()), Name: c.name("name of a certificate", p.GetName()), Until: time.UnixMilli(p.GetUntil()).UTC()}
}
