package rpc

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// A session asks for small things all the time: uses of keys, steps of creations.
// A gRPC call for each costs more than most of them: headers, a stream, goroutines on
// both sides that wake one another. So they travel in frames on a connection beside
// gRPC's, which lasts as long as the session: whoever asks writes, and one of
// those who wait reads for all, so that a caller who is alone wakes nobody. Those
// that come together go in one frame, and answers come back in any order.
//
// What a call means is the same both ways. It has its caller's deadline on the
// HSM too, and the HSM is told when its caller has given up. It is never sent
// twice. If the connection breaks, every caller gets the error that its own call
// would have got. While there is no such connection, because it is being made or
// the HSM is older and knows none, calls go in the old way; nobody waits for one.

// maxCallBytes keeps large requests and answers out of the way of small ones:
// they are calls of their own.
const maxCallBytes = 32 << 10

// callsAgain is how long a session goes without a connection for calls after one
// could not be made.
const callsAgain = time.Second

// caller makes the small calls of one session. It is safe for concurrent use.
type caller struct {
	replica *replicaClient
	last    atomic.Uint64 // id of a call

	mu     sync.Mutex
	line   *line // nil: none yet
	asked  bool  // before: the next call is worth a connection
	making bool  // a connection
	after  time.Time
	closed bool
}

// small tells whether a request may travel with others: it is not large, and its
// words are text, since what does not encode would break the stream for all.
func small(m proto.Message, words ...string) bool {
	for _, w := range words {
		if !utf8.ValidString(w) {
			return false
		}
	}
	return proto.Size(m) <= maxCallBytes
}

func smallUse(p *pb.UseRequest) bool {
	return p.GetLength() <= maxCallBytes && len(p.GetApprovals()) == 0 && small(p, p.GetKind(), p.GetParams().GetMechanism(), p.GetParams().GetHash())
}

// use makes a call of Use; ok is false if it must go in the old way.
func (c *caller) use(ctx context.Context, req *pb.UseRequest) (data []byte, ok bool, err error) {
	if !smallUse(req) {
		return nil, false, nil
	}
	out, ok, err := c.do(ctx, &pb.Call{What: &pb.Call_Use{Use: req}})
	return out.GetUse().GetData(), ok, err
}

// create makes a call of Create. reply is a CreateReply.
func (c *caller) create(ctx context.Context, op hsm.OpID, r *hsm.CreateRequest) (reply []byte, ok bool, err error) {
	if !smallCreate(r) {
		return nil, false, nil
	}
	req := appendCreate(nil, op, r)
	if len(req) > maxCallBytes {
		return nil, false, nil
	}
	out, ok, err := c.do(ctx, &pb.Call{What: &pb.Call_Create{Create: req}})
	return out.GetCreate(), ok, err
}

func (c *caller) prepare(ctx context.Context, req *pb.PrepareRequest) (ok bool, err error) {
	if !small(req) {
		return false, nil
	}
	_, ok, err = c.do(ctx, &pb.Call{What: &pb.Call_Prepare{Prepare: req}})
	return ok, err
}

func (c *caller) commit(ctx context.Context, req *pb.OpRequest) (ok bool, err error) {
	_, ok, err = c.do(ctx, &pb.Call{What: &pb.Call_Commit{Commit: req}})
	return ok, err
}

// destroy makes a call of Change, which must be one that destroys a key.
func (c *caller) destroy(ctx context.Context, req *pb.ChangeRequest) (changed *pb.Masked, ok bool, err error) {
	if req.GetKind() != string(hsm.ChangeDestroy) || len(req.GetPassword())+len(req.GetApprovals()) > 0 || !small(req, req.GetName(), req.GetUser(), req.GetRole()) {
		return nil, false, nil
	}
	out, ok, err := c.do(ctx, &pb.Call{What: &pb.Call_Destroy{Destroy: req}})
	return out.GetChanged(), ok, err
}

// do makes one call and waits for its answer. ok is false if it was not sent, and
// must go in the old way.
func (c *caller) do(ctx context.Context, what *pb.Call) (out *pb.Answer, ok bool, err error) {
	l := c.ready()
	if l == nil {
		return nil, false, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, true, c.replica.fail(ctx, err)
	}
	if at, limited := ctx.Deadline(); limited {
		what.Within = int64(max(time.Until(at), 1))
	}
	what.Id, what.Application = c.last.Add(1), toApplication(ctx)
	b, err := proto.Marshal(what) // here: the caller may write over it when it has given up
	if err != nil {
		return nil, false, nil
	}
	w := l.ask(what.Id, b)
	if w == nil {
		return nil, false, nil
	}
	switch err := l.wait(ctx, w); {
	case err == nil:
		return w.out, true, c.failure(w.out)
	case ctx.Err() != nil:
		return nil, true, c.replica.fail(ctx, ctx.Err())
	default:
		return nil, true, c.lost(ctx)
	}
}

var errClosed = fmt.Errorf("%w: it was closed", hsm.ErrSession)

// lost is the error of a call whose answer will not come.
func (c *caller) lost(ctx context.Context) error {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return errClosed
	}
	return c.replica.fail(ctx, status.Error(codes.Unavailable, "the connection was lost"))
}

// failure is the error of an answer.
func (c *caller) failure(p *pb.Answer) error {
	switch f := p.GetFailure(); {
	case f == nil:
		return nil
	case p.GetLate():
		return fmt.Errorf("HSM at %s: %w", c.replica.address, context.DeadlineExceeded)
	default:
		return fromFailure(f)
	}
}

// ready is the connection for calls, or nil; then one is made, if the session asks
// more than once.
func (c *caller) ready() *line {
	if c.replica.older.Load() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line != nil && !c.line.isOver() {
		return c.line
	}
	if c.asked && !c.making && !c.closed && time.Now().After(c.after) {
		c.making = true
		go c.make()
	}
	c.asked = true
	return nil
}

// make makes a connection. Why there is none is no caller's error: calls go in the
// old way, and say what they find.
func (c *caller) make() {
	ctx, cancel := context.WithTimeout(context.Background(), c.replica.timeout)
	defer cancel()
	err := c.connect(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.making = false
	if err != nil {
		c.after = time.Now().Add(callsAgain)
	}
}

// connect makes a connection and has calls use it.
func (c *caller) connect(ctx context.Context) error {
	conn, in, lost, err := c.replica.dialCalls(ctx, c.replica.token)
	if err != nil {
		return err
	}
	l := newLine(conn, in)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.fail(errClosed)
		return errClosed
	}
	c.line = l
	go l.watch(lost)
	return nil
}

// close ends the connection. Whoever waits learns that the session is over.
func (c *caller) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.line != nil {
		c.line.fail(errClosed)
	}
}
