package rpc

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// The server's side of sequences. Each holds one batch in memory.

// replica finds the session of a stream and the scope asked for.
func replica(ctx context.Context, scope uint32) (hsm.SketchReplica, error) {
	sc, err := checkScope(scope)
	if err != nil {
		return nil, err
	}
	s, err := sessionOf(ctx)
	if err != nil {
		return nil, err
	}
	return scoped(s, sc), nil
}

func (*service) Objects(p *pb.ObjectsRequest, stream grpc.ServerStreamingServer[pb.ObjectBatch]) error {
	r, err := replica(stream.Context(), p.GetScope())
	if err != nil {
		return err
	}
	buf := make([]byte, 0, batchObjects*objectSize)
	for o, err := range r.Objects(stream.Context()) {
		if err != nil {
			return err
		}
		if buf = appendObject(buf, o); len(buf) == cap(buf) {
			if err := stream.Send(&pb.ObjectBatch{Packed: buf}); err != nil {
				return sendError(err)
			}
			buf = buf[:0]
		}
	}
	if len(buf) == 0 {
		return nil
	}
	return sendError(stream.Send(&pb.ObjectBatch{Packed: buf}))
}

// sendError is what a failed Send means to a handler: the caller is gone.
func sendError(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(context.Canceled, err)
}

// Extract answers request after request. What it sends for one of them is a
// whole number of batches, the last marked done.
func (*service) Extract(stream grpc.BidiStreamingServer[pb.ExtractRequest, pb.ExtractReply]) error {
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return sendError(err)
		}
		if err := extract(stream, p); err != nil {
			return err
		}
	}
}

func extract(stream grpc.BidiStreamingServer[pb.ExtractRequest, pb.ExtractReply], p *pb.ExtractRequest) error {
	r, err := replica(stream.Context(), p.GetScope())
	if err != nil {
		return err
	}
	c := &checker{}
	refs := c.refs("references", p.GetRefs(), batchRefs)
	if c.err != nil {
		return c.err
	}
	objects := r.Extract(stream.Context(), slices.Values(refs))
	if p.GetPacked() {
		return extractPacked(stream, objects)
	}
	b := batch[*pb.Masked]{send: func(objects []*pb.Masked, last bool) error {
		return sendError(stream.Send(&pb.ExtractReply{Objects: objects, Done: last}))
	}}
	for m, err := range objects {
		if err != nil {
			return err
		}
		if err := b.add(toMasked(m)); err != nil {
			return err
		}
	}
	return b.flush(true)
}

// extractPacked answers one request, in messages that codec sends as they are.
func extractPacked(stream grpc.BidiStreamingServer[pb.ExtractRequest, pb.ExtractReply], objects iter.Seq2[hsm.MaskedObject, error]) error {
	reply := func() *packedReply { return &packedReply{packed: extractBuffers.Get(0)} }
	p := reply()
	for m, err := range objects {
		if err != nil {
			return err
		}
		if *p.packed = appendMasked(*p.packed, m); len(*p.packed) < batchBytes {
			continue
		}
		if err := stream.SendMsg(p); err != nil {
			return sendError(err)
		}
		p = reply()
	}
	p.done = true
	return sendError(stream.SendMsg(p))
}

// batch gathers messages until they are worth sending.
type batch[M proto.Message] struct {
	send  func(items []M, last bool) error
	items []M
	size  int
}

func (b *batch[M]) add(m M) error {
	b.items = append(b.items, m)
	if b.size += proto.Size(m) + 4; b.size < batchBytes && len(b.items) < maxObjects {
		return nil
	}
	return b.flush(false)
}

func (b *batch[M]) flush(last bool) error {
	items := b.items
	b.items, b.size = nil, 0
	return b.send(items, last)
}

// rest sends what is left, if anything.
func (b *batch[M]) rest() error {
	if len(b.items) == 0 {
		return nil
	}
	return b.flush(true)
}

// Insert merges the stream into the session's replica. The counts are sent
// whatever happens.
func (*service) Insert(stream grpc.BidiStreamingServer[pb.InsertRequest, pb.InsertReply]) error {
	p, err := stream.Recv()
	if err != nil {
		return sendError(err)
	}
	r, err := replica(stream.Context(), p.GetScope())
	if err != nil {
		return err
	}
	n, err := r.Insert(stream.Context(), incoming(p, stream.Recv))
	if err == nil {
		return sendInserted(stream, n, nil)
	}
	failure, _ := toFailure(err)
	if err := sendInserted(stream, n, failure); err != nil {
		return err
	}
	return &answeredError{err}
}

// incoming yields the objects of a stream, each checked.
func incoming(first *pb.InsertRequest, recv func() (*pb.InsertRequest, error)) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		var err error
		for p := first; err == nil; p, err = recv() {
			objects, bad := fromMaskedAll(p.GetObjects())
			if bad == nil && p.GetScope() != first.GetScope() {
				bad = invalid("scope %d after scope %d", p.GetScope(), first.GetScope())
			}
			if bad != nil {
				yield(hsm.MaskedObject{}, bad)
				return
			}
			for _, m := range objects {
				if !yield(m, nil) {
					return
				}
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(hsm.MaskedObject{}, sendError(err))
		}
	}
}

func sendInserted(stream grpc.BidiStreamingServer[pb.InsertRequest, pb.InsertReply], n hsm.Inserted, failure *pb.Failure) error {
	reply := toInserted(n)
	reply.Failure = failure
	for conflicts := range slices.Chunk(n.Conflicts, batchConflicts) {
		reply.Conflicts = toRefs(conflicts)
		if err := stream.Send(reply); err != nil {
			return sendError(err)
		}
		reply = &pb.InsertReply{}
	}
	if len(n.Conflicts) > 0 {
		return nil
	}
	return sendError(stream.Send(reply))
}

// Cells sends cells as far as the caller allows, then waits to be allowed more.
func (*service) Cells(stream grpc.BidiStreamingServer[pb.CellsRequest, pb.CellBatch]) error {
	p, err := stream.Recv()
	if err != nil {
		return sendError(err)
	}
	r, err := replica(stream.Context(), p.GetScope())
	if err != nil {
		return err
	}
	const most = 1 << 40
	if p.GetFrom() > most || p.GetUntil() > most {
		return invalid("cells from %d to %d", p.GetFrom(), p.GetUntil())
	}
	out := &cellSender{stream: stream, next: p.GetFrom(), until: p.GetUntil(), chunk: firstCells}
	for cell, err := range r.Cells(stream.Context(), int(p.GetFrom())) {
		if err != nil {
			return err
		}
		if done, err := out.add(cell); done || err != nil {
			return err
		}
	}
	return out.flush()
}

type cellSender struct {
	stream      grpc.BidiStreamingServer[pb.CellsRequest, pb.CellBatch]
	next, until uint64 // index of the next cell; what the caller allows
	chunk, held int
	buf         []byte
}

// add sends the cell with its chunk, and tells whether the caller has enough.
func (c *cellSender) add(cell hsm.Cell) (done bool, err error) {
	for c.next >= c.until {
		if err := c.flush(); err != nil {
			return true, err
		}
		p, err := c.stream.Recv()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, sendError(err)
		}
		c.until = p.GetUntil()
	}
	c.buf = appendCell(c.buf, cell)
	c.next++
	if c.held++; c.held < c.chunk {
		return false, nil
	}
	c.chunk = min(2*c.chunk, maxCells)
	return false, c.flush()
}

func (c *cellSender) flush() error {
	if c.held == 0 {
		return nil
	}
	err := c.stream.Send(&pb.CellBatch{Packed: c.buf})
	c.buf, c.held = c.buf[:0], 0
	return sendError(err)
}

func (*service) Keys(p *pb.KeysRequest, stream grpc.ServerStreamingServer[pb.KeyBatch]) error {
	filter, err := fromFilter(p)
	if err != nil {
		return err
	}
	s, err := sessionOf(stream.Context())
	if err != nil {
		return err
	}
	b := batch[*pb.KeyInfo]{send: func(keys []*pb.KeyInfo, _ bool) error { return sendError(stream.Send(&pb.KeyBatch{Keys: keys})) }}
	for k, err := range s.Keys(stream.Context(), filter) {
		if err != nil {
			return err
		}
		if err := b.add(toKeyInfo(k)); err != nil {
			return err
		}
	}
	return b.rest()
}

func (*service) Users(_ *pb.UsersRequest, stream grpc.ServerStreamingServer[pb.UserBatch]) error {
	s, err := sessionOf(stream.Context())
	if err != nil {
		return err
	}
	users, err := s.Users(stream.Context())
	if err != nil {
		return err
	}
	b := batch[*pb.UserInfo]{send: func(users []*pb.UserInfo, _ bool) error { return sendError(stream.Send(&pb.UserBatch{Users: users})) }}
	for _, u := range users {
		if err := b.add(toUser(u)); err != nil {
			return err
		}
	}
	return b.rest()
}
