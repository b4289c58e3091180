package rpc

import (
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// Conversion of requests. The server checks them; a caller's mistake is
// ErrInvalid, and nothing was done.

func toParams(p hsm.Params) *pb.Params {
	return &pb.Params{
		Mechanism: p.Mechanism, Hash: p.Hash, Digest: p.Digest, SaltLength: int64(p.SaltLength),
		Aad: p.AAD, Peer: p.Peer, SharedInfo: p.SharedInfo, Context: p.Context,
		Iv: p.IV, TagLength: int64(p.TagLength), CounterBits: int64(p.CounterBits),
	}
}

func fromParams(c *checker, p *pb.Params) hsm.Params {
	return hsm.Params{
		Mechanism: c.word("mechanism", p.GetMechanism()), Hash: c.word("hash", p.GetHash()), Digest: p.GetDigest(),
		SaltLength: c.small("salt length", p.GetSaltLength()),
		AAD:        p.GetAad(), Peer: p.GetPeer(), SharedInfo: p.GetSharedInfo(), Context: p.GetContext(),
		IV: p.GetIv(), TagLength: c.small("tag length", p.GetTagLength()), CounterBits: c.small("counter bits", p.GetCounterBits()),
	}
}

func toCreate(op hsm.OpID, r hsm.CreateRequest) *pb.CreateRequest {
	return &pb.CreateRequest{
		Op: op[:], Method: string(r.Method), Token: r.Token, Type: r.Type, Size: int64(r.Size), Curve: r.Curve, Class: string(r.Class),
		Attributes: toValues(r.Attributes), Public: toValues(r.Public), Shares: r.Shares, Data: r.Data.Reveal(), Key: uint64(r.Key),
		Params: toParams(r.Params), Masked: toMaskedAll(r.Masked), Lease: int64(r.Lease),
		Approvals: toApprovals(r.Approvals),
	}
}

func fromCreate(p *pb.CreateRequest) (hsm.OpID, hsm.CreateRequest, error) {
	c := &checker{}
	masked, err := fromMaskedAll(p.GetMasked())
	c.note(err)
	op := fixed[hsm.OpID](c, "operation", p.GetOp())
	r := hsm.CreateRequest{
		Method: hsm.Method(c.word("method", p.GetMethod())), Token: p.GetToken(), Type: c.word("key type", p.GetType()),
		Size: c.small("size", p.GetSize()), Curve: c.word("curve", p.GetCurve()), Class: hsm.Class(c.word("class", p.GetClass())),
		Attributes: c.values("attributes", p.GetAttributes()), Public: c.values("public attributes", p.GetPublic()),
		Shares: c.texts("shares", p.GetShares(), maxShares, maxName), Data: hsm.NewSecret(p.GetData()), Key: c.noneOrRef(p.GetKey()),
		Params: fromParams(c, p.GetParams()), Masked: masked, Lease: c.lease(p.GetLease()),
		Approvals: fromApprovals(c, p.GetApprovals()),
	}
	return op, r, c.err
}

func toChange(ch hsm.Change) *pb.ChangeRequest {
	p := &pb.ChangeRequest{
		Kind: string(ch.Kind), Ref: uint64(ch.Ref), Name: ch.Name, Value: []byte(ch.Value), User: ch.User, Role: string(ch.Role),
		Password: ch.Password.Reveal(), Settings: toSettings(ch.Settings), Member: toMember(ch.Member),
		Invite: toInvite(ch.Invite), Claim: toClaim(ch.Claim), Revoked: toRevocation(ch.Revoked), Recovery: ch.Recovery.Reveal(), After: ch.After, Life: ch.Life,
		Approvals: toApprovals(ch.Approvals), Public: ch.Public, Proof: ch.Proof, Departure: ch.Departure,
	}
	if ch.Masked != nil {
		p.Masked = toMasked(*ch.Masked)
	}
	return p
}

func fromChange(p *pb.ChangeRequest) (hsm.Change, error) {
	c := &checker{}
	c.count("bytes of the password", len(p.GetPassword()), maxPassword)
	c.count("bytes of the recovery", len(p.GetRecovery()), maxRecovery)
	ch := hsm.Change{
		Kind: hsm.ChangeKind(c.word("change", p.GetKind())), Ref: c.noneOrRef(p.GetRef()), Name: c.name("name", p.GetName()),
		Value: c.text("value", string(p.GetValue()), maxValue), User: c.name("user's name", p.GetUser()), Role: hsm.Role(c.word("role", p.GetRole())),
		Password: hsm.NewSecret(p.GetPassword()), Settings: fromSettings(c, p.GetSettings()), Member: fromMember(c, p.GetMember()),
		Invite: fromInvite(c, p.GetInvite()), Claim: fromClaim(c, p.GetClaim()), Revoked: fromRevocation(c, p.GetRevoked()), Recovery: hsm.NewSecret(p.GetRecovery()), After: p.GetAfter(), Life: p.GetLife(),
		Approvals: fromApprovals(c, p.GetApprovals()), Public: c.bytes("public key", p.GetPublic(), maxSigner), Proof: c.bytes("proof", p.GetProof(), maxSigner),
		Departure: p.GetDeparture(),
	}
	if p.GetMasked() != nil {
		m, err := fromMasked(p.GetMasked())
		if err != nil {
			return ch, err
		}
		ch.Masked = &m
	}
	return ch, c.err
}

func toUse(u hsm.Use) *pb.UseRequest {
	return &pb.UseRequest{
		Kind: string(u.Kind), Key: uint64(u.Key), Params: toParams(u.Params), Data: u.Data, Signature: u.Signature,
		Payload: uint64(u.Payload), Length: int64(u.Length), Approvals: toApprovals(u.Approvals),
	}
}

func fromUse(p *pb.UseRequest) (hsm.Use, error) {
	c := &checker{}
	u := hsm.Use{
		Kind: hsm.UseKind(c.word("operation", p.GetKind())), Key: c.noneOrRef(p.GetKey()), Params: fromParams(c, p.GetParams()),
		Data: p.GetData(), Signature: p.GetSignature(), Payload: c.noneOrRef(p.GetPayload()), Length: c.small("length", p.GetLength()),
		Approvals: fromApprovals(c, p.GetApprovals()),
	}
	if u.Length < 0 || u.Length > maxLength {
		c.fail("length %d: want 0 to %d", u.Length, maxLength)
	}
	return u, c.err
}

func toApprovals(as []hsm.Approval) (out []*pb.Approval) {
	for _, a := range as {
		p := &pb.Approval{Token: a.Token}
		for _, s := range a.Signatures {
			p.Signatures = append(p.Signatures, &pb.ApprovalSignature{User: s.User, Signature: s.Signature})
		}
		out = append(out, p)
	}
	return out
}

func fromApprovals(c *checker, ps []*pb.Approval) (out []hsm.Approval) {
	c.count("approvals", len(ps), hsm.MaxApprovals)
	for _, p := range ps {
		c.count("signatures of an approval", len(p.GetSignatures()), hsm.MaxSignatures)
		a := hsm.Approval{Token: c.bytes("quorum token", p.GetToken(), maxSigner)}
		for _, s := range p.GetSignatures() {
			a.Signatures = append(a.Signatures, hsm.ApprovalSignature{User: c.name("user's name", s.GetUser()), Signature: c.bytes("signature", s.GetSignature(), maxSigner)})
		}
		out = append(out, a)
	}
	return out
}

func toFilter(f hsm.Filter) *pb.KeysRequest {
	return &pb.KeysRequest{Refs: toRefs(f.Refs), Attrs: toValues(f.Attrs), Owner: f.Owner}
}

func fromFilter(p *pb.KeysRequest) (hsm.Filter, error) {
	c := &checker{}
	f := hsm.Filter{
		Refs: c.refs("references", p.GetRefs(), maxRefs), Attrs: c.values("attributes", p.GetAttrs()), Owner: c.name("owner", p.GetOwner()),
	}
	return f, c.err
}

func fromEnvelope(p *pb.EnvelopeRequest) (custodians []string, threshold int, err error) {
	c := &checker{}
	custodians = c.texts("custodians", p.GetCustodians(), maxRecipients, maxRecipient)
	return custodians, c.small("threshold", p.GetThreshold()), c.err
}

func fromOp(b []byte) (hsm.OpID, error) {
	c := &checker{}
	return fixed[hsm.OpID](c, "operation", b), c.err
}
