package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// A session asks for small things all the time: uses of keys, steps of creations.
// A gRPC call for each costs more than most of them: headers, a stream and its
// goroutines on both sides. So they share one stream, which lasts as long as the
// session: requests go out as they come, those that come together in one message,
// and answers come back in any order.
//
// What a call means is the same both ways. It has its caller's deadline on the
// HSM too, and the HSM is told when its caller has given up. It is never sent
// twice, unless the HSM said that it does not know such a stream and so has done
// nothing: then it is older, and is called in the old way from there on. If the
// stream breaks, every caller gets the error that its own call would have got.

// maxCallBytes keeps large requests and answers out of the way of small ones:
// they are calls of their own.
const maxCallBytes = 32 << 10

// caller makes the small calls of one session. It is safe for concurrent use.
type caller struct {
	replica *replicaClient

	older   atomic.Bool   // the HSM does not know such a stream
	opening chan struct{} // holds one token while somebody opens a stream

	mu     sync.Mutex
	line   *line // nil: none yet
	closed bool
}

// line is one stream of calls.
type line struct {
	stream grpc.BidiStreamingClient[pb.CallsRequest, pb.CallsReply]
	end    context.CancelFunc

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]*call // asked and not answered
	queue   []*pb.Call
	gone    []uint64
	sending bool  // a goroutine sends what is queued
	over    error // why the stream has ended
}

// call is one that waits for its answer.
type call struct {
	done chan struct{} // closed when answer or err is set
	out  *pb.Answer
	err  error
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

// smallCreate is for keys that are made in no time, from nothing: what carries key
// material never waits in a queue.
func smallCreate(p *pb.CreateRequest) bool {
	switch p.GetType() {
	case "aes", "generic-secret", "ec":
	default:
		return false
	}
	if p.GetMethod() != string(hsm.MethodGenerate) || len(p.GetData())+len(p.GetMasked())+len(p.GetShares())+len(p.GetApprovals()) > 0 {
		return false
	}
	words := []string{p.GetCurve(), p.GetClass(), p.GetParams().GetMechanism(), p.GetParams().GetHash()}
	for name := range p.GetAttributes() {
		words = append(words, name)
	}
	for name := range p.GetPublic() {
		words = append(words, name)
	}
	return small(p, words...)
}

// use makes a call of Use; ok is false if it is one that must go in the old way.
func (c *caller) use(ctx context.Context, req *pb.UseRequest) (data []byte, ok bool, err error) {
	if c.older.Load() || !smallUse(req) {
		return nil, false, nil
	}
	out, ok, err := c.do(ctx, &pb.Call{What: &pb.Call_Use{Use: keep(req)}})
	return out.GetUse().GetData(), ok, err
}

// keep copies what the caller may write over as soon as it has given up, while the
// request is still being sent.
func keep(p *pb.UseRequest) *pb.UseRequest {
	q := p.GetParams()
	for _, b := range []*[]byte{&p.Data, &p.Signature, &q.Aad, &q.Peer, &q.SharedInfo, &q.Context, &q.Iv} {
		*b = bytes.Clone(*b)
	}
	return p
}

func (c *caller) create(ctx context.Context, req *pb.CreateRequest) (reply *pb.CreateReply, ok bool, err error) {
	if c.older.Load() || !smallCreate(req) {
		return nil, false, nil
	}
	out, ok, err := c.do(ctx, &pb.Call{What: &pb.Call_Create{Create: req}})
	if reply = out.GetCreate(); reply == nil {
		reply = &pb.CreateReply{}
	}
	return reply, ok, err
}

func (c *caller) prepare(ctx context.Context, req *pb.PrepareRequest) (ok bool, err error) {
	if c.older.Load() || !small(req) {
		return false, nil
	}
	_, ok, err = c.do(ctx, &pb.Call{What: &pb.Call_Prepare{Prepare: req}})
	return ok, err
}

func (c *caller) commit(ctx context.Context, req *pb.OpRequest) (ok bool, err error) {
	if c.older.Load() {
		return false, nil
	}
	_, ok, err = c.do(ctx, &pb.Call{What: &pb.Call_Commit{Commit: req}})
	return ok, err
}

// do makes one call and waits for its answer. ok is false if the HSM is older, and
// has done nothing.
func (c *caller) do(ctx context.Context, what *pb.Call) (out *pb.Answer, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, true, c.replica.fail(ctx, err)
	}
	if at, limited := ctx.Deadline(); limited {
		what.Within = int64(max(time.Until(at), 1))
	}
	what.Application = toApplication(ctx)
	l, w, err := c.begin(ctx, what)
	if err != nil {
		return nil, true, err
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		l.leave(what.Id)
		return nil, true, c.replica.fail(ctx, ctx.Err())
	}
	if w.err == nil {
		return w.out, true, c.failure(w.out)
	}
	if c.isClosed() {
		return nil, true, errClosed
	}
	err = c.replica.fail(ctx, w.err)
	if errors.Is(err, errOlder) {
		c.older.Store(true)
		return nil, false, nil
	}
	return nil, true, err
}

var errClosed = fmt.Errorf("%w: it was closed", hsm.ErrSession)

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

// begin sends a call on the stream there is, or on a new one. It waits no longer than
// ctx: an HSM that is away may not answer before a connection to it is given up.
func (c *caller) begin(ctx context.Context, what *pb.Call) (*line, *call, error) {
	if l, w, err := c.ask(what); w != nil || err != nil {
		return l, w, err
	}
	select {
	case c.opening <- struct{}{}:
		defer func() { <-c.opening }()
	case <-ctx.Done():
		return nil, nil, c.replica.fail(ctx, ctx.Err())
	}
	if l, w, err := c.ask(what); w != nil || err != nil { // somebody else has opened it
		return l, w, err
	}
	l, err := c.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !c.adopt(l) {
		l.end()
		return nil, nil, errClosed
	}
	if w := l.ask(what); w != nil {
		return l, w, nil
	}
	return l, l.failed(), nil
}

// ask sends a call on the stream there is; w is nil if there is none.
func (c *caller) ask(what *pb.Call) (l *line, w *call, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, errClosed
	}
	if c.line == nil {
		return nil, nil, nil
	}
	return c.line, c.line.ask(what), nil
}

// adopt takes a stream as the one there is, unless the session is over.
func (c *caller) adopt(l *line) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.line = l
	return true
}

// open opens a stream, which outlives ctx; until it is there, ctx bounds it.
func (c *caller) open(ctx context.Context) (*line, error) {
	life, err := c.replica.outgoing(context.Background())
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(life)
	stop := context.AfterFunc(ctx, end)
	stream, err := c.replica.api.Calls(life)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		end()
		return nil, c.replica.fail(ctx, err)
	}
	l := &line{stream: stream, end: end, waiting: map[uint64]*call{}}
	go l.receive()
	return l, nil
}

// close ends the stream. Whoever waits learns that the session is over.
func (c *caller) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.line != nil {
		c.line.end()
	}
}

func (c *caller) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// ask queues a call; nil if the stream is over.
func (l *line) ask(what *pb.Call) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != nil {
		return nil
	}
	l.last++
	what.Id, what.Alone = l.last, len(l.waiting) == 0
	w := &call{done: make(chan struct{})}
	l.waiting[what.Id] = w
	l.queue = append(l.queue, what)
	l.wake()
	return w
}

// failed is a call on a stream that is over.
func (l *line) failed() *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &call{done: make(chan struct{}), err: l.over}
	close(w.done)
	return w
}

// leave tells the HSM that nobody waits for the answer, unless it was never asked.
func (l *line) leave(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[id] == nil || l.over != nil {
		return
	}
	delete(l.waiting, id)
	for i, q := range l.queue {
		if q.Id == id {
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
			return
		}
	}
	l.gone = append(l.gone, id)
	l.wake()
}

// wake has what is queued sent. Callers do not send: a stream that the HSM does not
// read would hold them up beyond their deadlines.
func (l *line) wake() {
	if !l.sending {
		l.sending = true
		go l.send()
	}
}

// send sends until nothing is queued.
func (l *line) send() {
	for {
		if l.crowded() {
			runtime.Gosched() // those who are about to ask share the message
		}
		req := l.take()
		if req == nil || l.stream.Send(req) != nil { // receive learns why
			return
		}
	}
}

// crowded tells whether others wait beside the one call that is to be sent.
func (l *line) crowded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) == 1 && len(l.waiting) > 1
}

// take takes one message's worth off the queue; nil, and nobody sends any more, if
// it is empty.
func (l *line) take() *pb.CallsRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue)+len(l.gone) == 0 {
		l.sending = false
		return nil
	}
	n := min(len(l.queue), maxSteps)
	req := &pb.CallsRequest{Calls: l.queue[:n:n], Gone: l.gone}
	l.queue, l.gone = l.queue[n:], nil
	return req
}

// receive hands out answers until the stream ends, and then its error.
func (l *line) receive() {
	defer l.end()
	for {
		reply, err := l.stream.Recv()
		l.mu.Lock()
		if err != nil {
			l.over = err
			for _, w := range l.waiting {
				w.err = err
				close(w.done)
			}
			l.waiting, l.queue, l.gone = nil, nil, nil
			l.mu.Unlock()
			return
		}
		for _, a := range reply.GetAnswers() {
			if w := l.waiting[a.GetId()]; w != nil { // or nobody waits any more
				delete(l.waiting, a.GetId())
				w.out = a
				close(w.done)
			}
		}
		l.mu.Unlock()
	}
}

// Calls answers the small calls of a session until its caller ends the stream, or
// the server stops.
func (v *service) Calls(stream grpc.BidiStreamingServer[pb.CallsRequest, pb.CallsReply]) error {
	c, err := connectionOf(stream.Context())
	if err == nil {
		_, err = sessionOf(stream.Context())
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	a := &answering{
		service: v, ctx: ctx, stream: stream, room: c.room, running: map[uint64]context.CancelFunc{},
		idle: make(chan struct{}, 1),
	}
	read := make(chan error, 1)
	go func() { read <- a.read() }() // returns at the latest when the handler has
	select {
	case err = <-read:
		if err != nil {
			cancel() // nobody is there to answer
		}
	case <-v.server.over:
		err = errStopping
	}
	a.finish()
	return err
}

// answering is the server's side of a stream of calls.
type answering struct {
	service *service
	ctx     context.Context // of the calls
	stream  grpc.BidiStreamingServer[pb.CallsRequest, pb.CallsReply]
	room    chan struct{} // the connection's

	mu       sync.Mutex
	running  map[uint64]context.CancelFunc
	under    int // calls under way, their answers included
	finished bool
	idle     chan struct{} // holds one token when finished and nothing is under way
	queue    []*pb.Answer
	sending  bool
}

// read begins what is asked until the stream ends. Calls beyond the room there is
// wait on the wire.
func (a *answering) read() error {
	for {
		req, err := a.stream.Recv()
		if err != nil {
			return ended(err)
		}
		if n := len(req.GetCalls()); n > maxSteps {
			return invalid("%d calls in one message: want at most %d", n, maxSteps)
		}
		for _, p := range req.GetCalls() {
			if err := a.begin(p); err != nil {
				return err
			}
		}
		a.leave(req.GetGone())
	}
}

// begin begins one call. One that is alone and done in no time is done at once: to
// wake another goroutine for it would cost as much again. A caller who says so of
// what is not only holds up itself.
func (a *answering) begin(p *pb.Call) error {
	ctx := a.ctx
	select {
	case a.room <- struct{}{}:
	case <-ctx.Done():
		return ended(ctx.Err())
	}
	within := time.Duration(p.GetWithin())
	if within <= 0 {
		within = math.MaxInt64
	}
	ctx, cancel := withTimeout(ctx, within)
	a.mu.Lock()
	_, taken := a.running[p.GetId()]
	if taken || a.finished {
		a.mu.Unlock()
		cancel()
		<-a.room
		if taken {
			return invalid("call %d is under way already", p.GetId())
		}
		return errStopping
	}
	a.running[p.GetId()] = cancel
	a.under++
	a.mu.Unlock()
	if p.GetAlone() && quick(p) {
		a.run(ctx, p)
	} else {
		a.service.server.work(func() { a.run(ctx, p) })
	}
	return nil
}

// withTimeout is context.WithTimeout, without a timer for what never comes.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == math.MaxInt64 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// quick tells of a call that it takes a fraction of a millisecond and waits for
// nothing.
func quick(p *pb.Call) bool {
	switch what := p.GetWhat().(type) {
	case *pb.Call_Prepare:
		return true
	case *pb.Call_Use:
		switch what.Use.GetParams().GetMechanism() {
		case "ecdsa", "hmac", "aes-gcm", "aes-cbc", "aes-ctr", "aes-cmac":
			return true
		}
	}
	return false
}

// leave breaks calls off for which nobody waits.
func (a *answering) leave(gone []uint64) {
	for _, id := range gone {
		a.mu.Lock()
		cancel := a.running[id]
		a.mu.Unlock()
		if cancel != nil {
			cancel()
		}
	}
}

// run does one call and sends its answer.
func (a *answering) run(ctx context.Context, p *pb.Call) {
	out := a.service.answer(ctx, p)
	a.mu.Lock()
	a.running[p.GetId()]()
	delete(a.running, p.GetId())
	<-a.room
	a.queue = append(a.queue, out)
	first := !a.sending
	a.sending = true
	a.mu.Unlock()
	if first {
		a.send()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.under--
	a.noteIdle()
}

// send sends answers until there are none. If the stream is broken they are lost,
// as their callers know.
func (a *answering) send() {
	for {
		a.mu.Lock()
		n, bytes := 0, 0
		for n < len(a.queue) && bytes < batchBytes {
			bytes += proto.Size(a.queue[n])
			n++
		}
		answers := a.queue[:n:n]
		a.queue = a.queue[n:]
		if n == 0 {
			a.queue, a.sending = nil, false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		_ = a.stream.Send(&pb.CallsReply{Answers: answers})
	}
}

// finish lets nothing begin any more and waits for what has.
func (a *answering) finish() {
	a.mu.Lock()
	a.finished = true
	a.noteIdle()
	a.mu.Unlock()
	<-a.idle
}

func (a *answering) noteIdle() {
	if a.finished && a.under == 0 {
		select {
		case a.idle <- struct{}{}:
		default:
		}
	}
}

// answer does one call as the call of its own that it stands for.
func (v *service) answer(ctx context.Context, p *pb.Call) *pb.Answer {
	out := &pb.Answer{Id: p.GetId()}
	ctx = withApplication(ctx, p.GetApplication())
	name, do := v.creation(ctx, p, &out.Create)
	switch use := p.GetUse(); {
	case use != nil:
		name, do = "Use", func() (err error) { out.Use, err = v.Use(ctx, use); return err }
	case do == nil:
		name, do = "Calls", func() error { return invalid("a call that is none of use, create, prepare and commit") }
	}
	if err := v.server.within(name, do); err != nil {
		out.Use, out.Create = nil, nil
		out.Late = errors.Is(err, context.DeadlineExceeded)
		out.Failure = v.server.failure(name, err)
	}
	return out
}
