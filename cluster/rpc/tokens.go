package rpc

import (
	"crypto/sha256"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

func toSeconds(d time.Duration) int64 { return int64(d / time.Second) }

func fromSeconds(c *checker, s int64) time.Duration {
	if s < 0 || s > int64(hsm.MaxTokenLife/time.Second) {
		c.fail("timeout of %d seconds", s)
		return 0
	}
	return time.Duration(s) * time.Second
}

func toTokens(tokens []hsm.TokenInfo) *pb.TokensReply {
	out := &pb.TokensReply{}
	for _, t := range tokens {
		out.Tokens = append(out.Tokens, &pb.TokenInfo{Digest: t.Digest[:], Service: string(t.Service), Key: uint64(t.Key), Requester: t.Requester,
			Required: int64(t.Required), Approvals: int64(t.Approvals), Left: int64(t.Left)})
	}
	return out
}

func fromTokens(p *pb.TokensReply) ([]hsm.TokenInfo, error) {
	c := &checker{}
	c.count("quorum tokens", len(p.GetTokens()), hsm.MaxTokens)
	out := []hsm.TokenInfo{}
	for _, t := range p.GetTokens() {
		if t.GetLeft() < 0 || t.GetLeft() > int64(hsm.MaxTokenLife) {
			c.fail("a quorum token that is good for %s", time.Duration(t.GetLeft()))
		}
		if len(t.GetDigest()) != sha256.Size {
			c.fail("the digest of a quorum token has %d bytes", len(t.GetDigest()))
			break
		}
		out = append(out, hsm.TokenInfo{Digest: [sha256.Size]byte(t.GetDigest()), Service: hsm.Service(c.word("service", t.GetService())),
			Key: c.noneOrRef(t.GetKey()), Requester: c.name("requester", t.GetRequester()), Required: c.small("approvals", t.GetRequired()),
			Approvals: c.small("approvals", t.GetApprovals()), Left: time.Duration(t.GetLeft())})
	}
	return out, c.err
}
