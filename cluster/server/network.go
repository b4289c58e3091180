package server

import (
	"context"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// Network stands in place of TLS and gRPC: the HSMs of a simulation reach each other
// through it, and everything else of a Server is as it is in a process. Whoever
// provides it vouches for what TLS does: that an HSM is who it is dialled as, that
// callers are who they say (Server.Module), that a joiner holds the token of the
// invitation that it names (Server.Admit).
type Network struct {
	// Dial reaches another member as this HSM.
	Dial Dial
	// Join brings a joiner's request to the HSM at an address. pki.ErrRefused if that
	// does not know the invitation.
	Join func(ctx context.Context, address string, r rpc.JoinRequest) (rpc.JoinReply, error)
	// End ends the connections of callers that are lost, and returns how many.
	End func(lost func(id pki.Identity, issued time.Time) bool) int
}

// Module is the HSM as a caller with this identity sees it. Nil: the caller has no
// business here.
func (s *Server) Module(id pki.Identity) hsm.Module { return s.module(id) }

// Admit lets a new HSM in that holds the token of an invitation.
func (s *Server) Admit(ctx context.Context, invite string, r rpc.JoinRequest) (rpc.JoinReply, error) {
	return s.admit(ctx, invite, r)
}

// HSM is the software HSM alone, which knows nothing of the states in which it does
// not serve: for those who look at what is in it.
func (s *Server) HSM() *soft.HSM { return s.device.soft }

// endConnections ends those of callers that have lost their place.
func (s *Server) endConnections() int {
	if s.options.Network != nil {
		return s.options.Network.End(s.expelled)
	}
	return s.rpc.End(s.expelled)
}

// serveCalls serves callers until the context ends.
func (s *Server) serveCalls(ctx context.Context) error {
	if s.rpc == nil {
		<-ctx.Done()
		return nil
	}
	return s.rpc.Serve(s.lis)
}

// dialTLS reaches a peer, which must be the very member that is expected at its
// address: two answers of one HSM must never count as those of two (see settle).
func (s *Server) dialTLS(ctx context.Context, m hsm.Member) (hsm.Module, error) {
	clientTLS, err := s.tls.Client(m.ID)
	if err != nil {
		return nil, err
	}
	return rpc.Dial(ctx, m.Address, clientTLS, rpc.WithDialer(s.traffic.dial))
}
