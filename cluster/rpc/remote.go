package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// replicaClient is one scope of a session on an HSM elsewhere.
type replicaClient struct {
	*module
	token   string
	lineage hsm.Lineage
	scope   hsm.Scope
	over    *atomic.Bool
}

// session is a session on an HSM elsewhere.
type session struct {
	replica   replicaClient
	principal hsm.Principal
	stream    grpc.BidiStreamingClient[pb.AttachRequest, pb.AttachReply]
	end       context.CancelFunc
	calls     caller
	over      atomic.Bool
	closing   sync.Once
	closed    error
}

var (
	_ hsm.Session       = (*session)(nil)
	_ hsm.SketchReplica = (*replicaClient)(nil)
	_ hsm.Module        = (*module)(nil)
)

// outgoing names the session in a call.
func (r *replicaClient) outgoing(ctx context.Context) (context.Context, error) {
	if r.over.Load() {
		return nil, fmt.Errorf("%w: it was closed", hsm.ErrSession)
	}
	return metadata.AppendToOutgoingContext(claiming(ctx), tokenHeader, r.token), nil
}

// ask is one unary call: request out, reply in, checked.
func ask[Q, P, T any](ctx context.Context, r *replicaClient, call func(context.Context, Q, ...grpc.CallOption) (P, error), req Q, from func(P) (T, error)) (none T, _ error) {
	out, err := r.outgoing(ctx)
	if err != nil {
		return none, err
	}
	p, err := call(out, req)
	if err != nil {
		return none, r.fail(ctx, err)
	}
	v, err := from(p)
	if err != nil {
		return none, fmt.Errorf("answer of the HSM at %s: %w", r.address, err)
	}
	return v, nil
}

// nothing is the conversion of an empty reply.
func nothing[P any](P) (struct{}, error) { return struct{}{}, nil }

func (r *replicaClient) Lineage() hsm.Lineage { return r.lineage }

func (r *replicaClient) Root(ctx context.Context) (hsm.Root, error) {
	return ask(ctx, r, r.api.Root, &pb.RootRequest{Scope: uint32(r.scope)}, fromRoot)
}

func (r *replicaClient) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return ask(ctx, r, r.api.FingerprintKeys, &pb.FingerprintKeysRequest{Scope: uint32(r.scope)}, fromFingerprintKeys)
}

// errStop says that whoever ranges has had enough.
var errStop = errors.New("stop")

// sequence yields what open and the loop of receive produce. The stream is
// gone when the caller stops ranging.
func sequence[T any](ctx context.Context, r *replicaClient, run func(ctx context.Context, yield func(T) error) error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		out, err := r.outgoing(ctx)
		if err != nil {
			yield(none, err)
			return
		}
		out, cancel := context.WithCancel(out)
		defer cancel()
		err = run(out, func(v T) error {
			if !yield(v, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && err != errStop {
			yield(none, r.received(ctx, err))
		}
	}
}

// received tells an error of the call from a refusal of what was received.
func (r *replicaClient) received(ctx context.Context, err error) error {
	if errors.Is(err, hsm.ErrInvalid) {
		return fmt.Errorf("answer of the HSM at %s: %w", r.address, err)
	}
	return r.fail(ctx, err)
}

// drain receives until the end of a stream.
func drain[P any](recv func() (*P, error), each func(*P) error) error {
	for {
		p, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(p); err != nil {
			return err
		}
	}
}

// eachOf yields the converted elements of a batch.
func eachOf[P, T any](ps []P, from func(P) (T, error), yield func(T) error) error {
	for _, p := range ps {
		v, err := from(p)
		if err != nil {
			return err
		}
		if err := yield(v); err != nil {
			return err
		}
	}
	return nil
}

func (r *replicaClient) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return sequence(ctx, r, func(ctx context.Context, yield func(hsm.Object) error) error {
		stream, err := r.api.Objects(ctx, &pb.ObjectsRequest{Scope: uint32(r.scope)})
		if err != nil {
			return err
		}
		return drain(stream.Recv, func(p *pb.ObjectBatch) error {
			for b := p.GetPacked(); len(b) > 0; {
				o, rest, err := parseObject(b)
				if err != nil {
					return err
				}
				if err := yield(o); err != nil {
					return err
				}
				b = rest
			}
			return nil
		})
	})
}

// Extract stays a few requests ahead of the answers, in one goroutine: refs is
// pulled between the objects that are yielded, never at the same time.
func (r *replicaClient) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return sequence(ctx, r, func(ctx context.Context, yield func(hsm.MaskedObject) error) error {
		stream, err := r.api.Extract(ctx)
		if err != nil {
			return err
		}
		x := &extraction{stream: stream, scope: uint32(r.scope), yield: yield}
		for ref := range refs {
			if err = x.ask(uint64(ref)); err != nil {
				return err
			}
		}
		return x.finish()
	})
}

type extraction struct {
	stream grpc.BidiStreamingClient[pb.ExtractRequest, pb.ExtractReply]
	scope  uint32
	yield  func(hsm.MaskedObject) error
	refs   []uint64
	asked  int // requests without their last answer
}

func (x *extraction) ask(ref uint64) error {
	if x.refs = append(x.refs, ref); len(x.refs) < batchRefs {
		return nil
	}
	return x.send()
}

func (x *extraction) send() error {
	if x.asked == aheadRefs {
		if err := x.receive(); err != nil {
			return err
		}
	}
	err := x.stream.Send(&pb.ExtractRequest{Scope: x.scope, Refs: x.refs, Packed: true})
	x.refs = x.refs[:0]
	x.asked++
	if errors.Is(err, io.EOF) { // the server ended the stream: its status says why
		return x.receive()
	}
	return err
}

// receive yields the answers of one request.
func (x *extraction) receive() error {
	for {
		var p extractReply
		err := x.stream.RecvMsg(&p)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if err := eachOf(p.objects, fromMasked, x.yield); err != nil {
			return err
		}
		if err := eachPacked(p.packed, x.yield); err != nil {
			return err
		}
		if p.done {
			x.asked--
			return nil
		}
	}
}

// eachPacked yields the objects of a packed batch, which they alias.
func eachPacked(b []byte, yield func(hsm.MaskedObject) error) error {
	for len(b) > 0 {
		m, rest, err := parseMasked(b)
		if err != nil {
			return err
		}
		if err := yield(m); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

func (x *extraction) finish() error {
	if len(x.refs) > 0 {
		if err := x.send(); err != nil {
			return err
		}
	}
	x.stream.CloseSend()
	for x.asked > 0 {
		if err := x.receive(); err != nil {
			return err
		}
	}
	return drain(x.stream.Recv, func(*pb.ExtractReply) error { return invalid("an answer to no request") })
}

func (r *replicaClient) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	out, err := r.outgoing(ctx)
	if err != nil {
		return hsm.Inserted{}, err
	}
	out, cancel := context.WithCancel(out)
	defer cancel()
	stream, err := r.api.Insert(out)
	if err != nil {
		return hsm.Inserted{}, r.fail(ctx, err)
	}
	own := sendAll(stream, uint32(r.scope), objects)
	stream.CloseSend()
	n, err := receiveInserted(stream)
	if err != nil {
		err = r.receivedInsert(ctx, err)
	}
	if own != nil {
		return n, own
	}
	return n, err
}

// receivedInsert leaves a failure in a reply as it is.
func (r *replicaClient) receivedInsert(ctx context.Context, err error) error {
	if _, ok := err.(*textError); ok {
		return err
	}
	return r.received(ctx, err)
}

// sendAll sends the objects in batches, and at least one. It returns the error
// of objects; that the server does not listen any more is for its reply to
// explain.
func sendAll(stream grpc.BidiStreamingClient[pb.InsertRequest, pb.InsertReply], scope uint32, objects iter.Seq2[hsm.MaskedObject, error]) error {
	deaf := false
	b := batch[*pb.Masked]{send: func(items []*pb.Masked, _ bool) error {
		deaf = stream.Send(&pb.InsertRequest{Scope: scope, Objects: items}) != nil
		return nil
	}}
	for m, err := range objects {
		if err != nil {
			b.flush(true)
			return err
		}
		if b.add(toMasked(m)); deaf {
			return nil
		}
	}
	return b.flush(true)
}

// receiveInserted adds the replies up.
func receiveInserted(stream grpc.BidiStreamingClient[pb.InsertRequest, pb.InsertReply]) (total hsm.Inserted, failure error) {
	err := drain(stream.Recv, func(p *pb.InsertReply) error {
		n, err := fromInserted(p)
		total.Add(n)
		if p.GetFailure() != nil {
			failure = fromFailure(p.GetFailure())
		}
		return err
	})
	if failure != nil {
		return total, failure
	}
	return total, err
}

// Cells allows the HSM twice as many cells as it has got whenever half of what
// was allowed has been used up: a small difference costs one round trip, and
// the HSM never computes many more cells than are wanted.
func (r *replicaClient) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return sequence(ctx, r, func(ctx context.Context, yield func(hsm.Cell) error) error {
		stream, err := r.api.Cells(ctx)
		if err != nil {
			return err
		}
		w := &window{stream: stream, scope: uint32(r.scope), from: uint64(from), yield: yield}
		if err := w.allow(aheadCells); err != nil {
			return err
		}
		return drain(stream.Recv, func(p *pb.CellBatch) error { return w.batch(p.GetPacked()) })
	})
}

type window struct {
	stream     grpc.BidiStreamingClient[pb.CellsRequest, pb.CellBatch]
	scope      uint32
	from       uint64
	yield      func(hsm.Cell) error
	got, total uint64
}

func (w *window) allow(total uint64) error {
	w.total = total
	err := w.stream.Send(&pb.CellsRequest{Scope: w.scope, From: w.from, Until: w.from + total})
	if errors.Is(err, io.EOF) {
		return nil // Recv says why
	}
	return err
}

func (w *window) batch(b []byte) error {
	for len(b) > 0 {
		cell, rest, err := parseCell(b)
		if err != nil {
			return err
		}
		if w.got++; w.got > w.total {
			return invalid("more cells than were allowed")
		}
		if err := w.yield(cell); err != nil {
			return err
		}
		b = rest
	}
	if 2*w.got < w.total {
		return nil
	}
	return w.allow(2 * w.total)
}

func (s *session) Principal() hsm.Principal { return s.principal }
func (s *session) Lineage() hsm.Lineage     { return s.replica.lineage }

func (s *session) Scoped(scope hsm.Scope) hsm.SketchReplica {
	r := s.replica
	r.scope = scope
	return &r
}

func (s *session) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return s.replica.Objects(ctx)
}

func (s *session) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return s.replica.Extract(ctx, refs)
}

func (s *session) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	return s.replica.Insert(ctx, objects)
}

func (s *session) Root(ctx context.Context) (hsm.Root, error) { return s.replica.Root(ctx) }

func (s *session) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return s.replica.FingerprintKeys(ctx)
}

func (s *session) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return s.replica.Cells(ctx, from)
}

func (s *session) Info(ctx context.Context) (hsm.Info, error) {
	return ask(ctx, &s.replica, s.replica.api.Info, &pb.InfoRequest{}, fromInfo)
}

// Brief is Info with nothing but id, lineage, state, roots and the epochs of masking
// keys, for who asks often.
func (s *session) Brief(ctx context.Context) (hsm.Info, error) {
	return ask(ctx, &s.replica, s.replica.api.Info, &pb.InfoRequest{Brief: true}, fromInfo)
}

func (s *session) Members(ctx context.Context) ([]hsm.Member, error) {
	return ask(ctx, &s.replica, s.replica.api.Members, &pb.MembersRequest{}, fromMembers)
}

func (s *session) Prepare(ctx context.Context, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	req := &pb.PrepareRequest{Op: op[:], Lease: int64(lease), Objects: toMaskedAll(objects)}
	ok, err := s.calls.prepare(ctx, req)
	if !ok {
		_, err = ask(ctx, &s.replica, s.replica.api.Prepare, req, nothing)
	}
	return err
}

func (s *session) Commit(ctx context.Context, op hsm.OpID) error {
	req := &pb.OpRequest{Op: op[:]}
	ok, err := s.calls.commit(ctx, req)
	if !ok {
		_, err = ask(ctx, &s.replica, s.replica.api.Commit, req, nothing)
	}
	return err
}

func (s *session) Abort(ctx context.Context, op hsm.OpID) error {
	_, err := ask(ctx, &s.replica, s.replica.api.Abort, &pb.OpRequest{Op: op[:]}, nothing)
	return err
}

func (s *session) Resolve(ctx context.Context, op hsm.OpID) (hsm.OpState, error) {
	return ask(ctx, &s.replica, s.replica.api.Resolve, &pb.OpRequest{Op: op[:]}, func(p *pb.ResolveReply) (hsm.OpState, error) {
		if p.GetState() > uint32(hsm.OpAborted) {
			return 0, invalid("state %d does not exist", p.GetState())
		}
		return hsm.OpState(p.GetState()), nil
	})
}

func (s *session) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	reply, ok, err := s.calls.create(ctx, op, &r)
	switch {
	case !ok:
		return ask(ctx, &s.replica, s.replica.api.Create, toCreate(op, r), fromCreated)
	case err != nil:
		return hsm.Created{}, err
	}
	made, err := parseCreated(reply)
	if err != nil {
		return hsm.Created{}, fmt.Errorf("answer of the HSM at %s: %w", s.replica.address, err)
	}
	return made, nil
}

func (s *session) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	req := toChange(c)
	p, ok, err := s.calls.destroy(ctx, req)
	switch {
	case !ok:
		return ask(ctx, &s.replica, s.replica.api.Change, req, fromChanged)
	case err != nil:
		return hsm.MaskedObject{}, err
	}
	m, err := fromChanged(p)
	if err != nil {
		return hsm.MaskedObject{}, fmt.Errorf("answer of the HSM at %s: %w", s.replica.address, err)
	}
	return m, nil
}

func (s *session) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	req := toUse(u)
	if data, ok, err := s.calls.use(ctx, req); ok {
		return data, err
	}
	return ask(ctx, &s.replica, s.replica.api.Use, req, func(p *pb.UseReply) ([]byte, error) { return p.GetData(), nil })
}

func (s *session) Keys(ctx context.Context, f hsm.Filter) iter.Seq2[hsm.KeyInfo, error] {
	return sequence(ctx, &s.replica, func(ctx context.Context, yield func(hsm.KeyInfo) error) error {
		stream, err := s.replica.api.Keys(ctx, toFilter(f))
		if err != nil {
			return err
		}
		return drain(stream.Recv, func(p *pb.KeyBatch) error { return eachOf(p.GetKeys(), fromKeyInfo, yield) })
	})
}

func (s *session) Key(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	return ask(ctx, &s.replica, s.replica.api.Key, &pb.KeyRequest{Ref: uint64(ref)}, fromKeyInfo)
}

func (s *session) Users(ctx context.Context) (users []hsm.UserInfo, err error) {
	all := sequence(ctx, &s.replica, func(ctx context.Context, yield func(hsm.UserInfo) error) error {
		stream, err := s.replica.api.Users(ctx, &pb.UsersRequest{})
		if err != nil {
			return err
		}
		return drain(stream.Recv, func(p *pb.UserBatch) error { return eachOf(p.GetUsers(), fromUser, yield) })
	})
	for u, err := range all {
		if err != nil {
			return nil, err
		}
		users = append(users, u)
	}
	return users, nil
}

func (s *session) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	req := &pb.EnvelopeRequest{Custodians: custodians, Threshold: int64(threshold)}
	return ask(ctx, &s.replica, s.replica.api.Envelope, req, func(p *pb.EnvelopeReply) ([]byte, error) { return p.GetEnvelope(), nil })
}

func (s *session) Token(ctx context.Context, service hsm.Service, key hsm.KeyRef) ([]byte, error) {
	req := &pb.TokenRequest{Service: string(service), Key: uint64(key)}
	return ask(ctx, &s.replica, s.replica.api.Token, req, func(p *pb.TokenReply) ([]byte, error) { return p.GetToken(), nil })
}

func (s *session) Tokens(ctx context.Context) ([]hsm.TokenInfo, error) {
	return ask(ctx, &s.replica, s.replica.api.Tokens, &pb.TokensRequest{}, fromTokens)
}

func (s *session) DeleteTokens(ctx context.Context, all bool) (int, error) {
	return ask(ctx, &s.replica, s.replica.api.DeleteTokens, &pb.DeleteTokensRequest{All: all}, func(p *pb.DeleteTokensReply) (int, error) {
		c := &checker{}
		return c.small("deleted tokens", p.GetDeleted()), c.err
	})
}

func (s *session) Sign(ctx context.Context, purpose hsm.Purpose, message []byte) (hsm.LineageSignature, error) {
	req := &pb.SignRequest{Purpose: string(purpose), Message: message}
	return ask(ctx, &s.replica, s.replica.api.Sign, req, func(p *pb.SignReply) (hsm.LineageSignature, error) {
		return hsm.LineageSignature{Public: p.GetPublic(), Signature: p.GetSignature()}, nil
	})
}

// Close half-closes the session's stream and waits for the HSM to say that the
// session keys are gone. If the connection is lost they are gone too, or will
// be as soon as the HSM notices; that is no error.
func (s *session) Close() error {
	s.closing.Do(func() {
		s.over.Store(true)
		defer s.end()
		s.calls.close()
		s.stream.CloseSend()
		err := drain(s.stream.Recv, func(*pb.AttachReply) error { return nil })
		if err = s.replica.fail(context.Background(), err); !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, hsm.ErrSession) {
			s.closed = err
		}
	})
	return s.closed
}
