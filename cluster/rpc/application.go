package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// applicationHeader names the application that a call is made for. HSMs that do
// not know it leave it alone; clients that do not know it do not send it.
const applicationHeader = "hsmbackup-application-bin"

// maxApplication bounds the header: what is longer is not even decoded.
const maxApplication = 128

// toApplication is nil if the caller named no application.
func toApplication(ctx context.Context) *pb.Application {
	a, ok := hsm.ApplicationOf(ctx)
	if !ok {
		return nil
	}
	return &pb.Application{Pid: a.PID, Uid: a.UID, Program: a.Program}
}

// withApplication is a context of the server for what a client claims.
func withApplication(ctx context.Context, p *pb.Application) context.Context {
	if p == nil {
		return ctx
	}
	return hsm.WithApplication(ctx, hsm.Application{PID: p.GetPid(), UID: p.GetUid(), Program: p.GetProgram()})
}

// claiming adds the application to what a call sends.
func claiming(ctx context.Context) context.Context {
	p := toApplication(ctx)
	if p == nil {
		return ctx
	}
	b, err := proto.Marshal(p)
	if err != nil { // a name that is no UTF-8; Claimed leaves none
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, applicationHeader, string(b))
}

// claimed reads what a call claims. A claim that cannot be read is recorded as
// one of nothing: it is no reason to refuse a call, nor to keep silent about it.
func claimed(ctx context.Context) context.Context {
	values := metadata.ValueFromIncomingContext(ctx, applicationHeader)
	if len(values) == 0 {
		return ctx
	}
	p := &pb.Application{}
	if len(values) > 1 || len(values[0]) > maxApplication || proto.Unmarshal([]byte(values[0]), p) != nil {
		p = &pb.Application{}
	}
	return withApplication(ctx, p)
}

// servedStream is a stream whose context knows the application, and that sends what is
// settled.
type servedStream struct {
	grpc.ServerStream
	ctx    context.Context
	settle func()
}

func (s *servedStream) Context() context.Context { return s.ctx }

// SendMsg implements grpc.ServerStream.
func (s *servedStream) SendMsg(m any) error {
	s.settle()
	return s.ServerStream.SendMsg(m)
}
