package rpc

import (
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// TestBriefIsWhatMembersAskFor: the roots and whose they are, as in Info, and
// nothing that grows with names, custodians or operations in doubt.
func TestBriefIsWhatMembersAskFor(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	remote := open(t, s.dial(pki.KindHSM, s.id.String())).(*session)
	full, err := remote.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	brief, err := remote.Brief(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if brief.ID != full.ID || brief.Lineage != full.Lineage || brief.State != full.State || brief.Root != full.Root || brief.ClusterRoot != full.ClusterRoot || brief.Root == (hsm.Root{}) || !slices.Equal(brief.Epochs, full.Epochs) || brief.Sealing != full.Sealing || brief.Sealing == 0 {
		t.Errorf("brief %+v, full %+v", brief, full)
	}
	out, err := remote.replica.outgoing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reply, err := remote.replica.api.Info(out, &pb.InfoRequest{Brief: true})
	if err != nil {
		t.Fatal(err)
	}
	if reply.Settings != nil || reply.ClusterName != "" || reply.Zone != "" || reply.Version != "" || len(reply.Doubts) > 0 {
		t.Errorf("brief carries more than roots: %v", reply)
	}
}
