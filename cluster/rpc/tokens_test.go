package rpc

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// TestTokenListsRoundTrip: what HSMs say of their quorum tokens, and what is taken from none.
func TestTokenListsRoundTrip(t *testing.T) {
	tokens := []hsm.TokenInfo{
		{Digest: [32]byte{1}, Service: hsm.ServiceKeyUsage, Key: 5, Requester: "bob", Required: 2, Approvals: 1, Left: time.Second + 1},
		{Digest: [32]byte{2}, Service: hsm.ServiceUser, Requester: "admin"},
	}
	got, err := fromTokens(wire(t, toTokens(tokens), &pb.TokensReply{}))
	if diff := cmp.Diff(tokens, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	digest := make([]byte, 32)
	for name, bad := range map[string]*pb.TokenInfo{
		"short digest": {Digest: digest[1:]}, "key": {Digest: digest, Key: math.MaxUint64}, "many": {Digest: digest, Approvals: math.MaxInt64},
		"past": {Digest: digest, Left: -1}, "for ever": {Digest: digest, Left: math.MaxInt64},
	} {
		if _, err := fromTokens(&pb.TokensReply{Tokens: []*pb.TokenInfo{bad}}); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := fromTokens(&pb.TokensReply{Tokens: make([]*pb.TokenInfo, hsm.MaxTokens+1)}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
	for _, seconds := range []int64{-1, 24*60*60 + 1, math.MaxInt64} {
		p := toInfo(hsm.Info{})
		p.ApprovedTimeout = seconds
		if _, err := fromInfo(p); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("a timeout of %d seconds: %v", seconds, err)
		}
	}
}
