package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// answering is the server's side of a connection for calls.
type answering struct {
	service *service
	ctx     context.Context // of the calls; it knows the session
	conn    net.Conn
	room    chan struct{} // of the session's connection

	mu       sync.Mutex
	running  map[uint64]context.CancelFunc
	under    int // calls under way, their answers included
	finished bool
	idle     chan struct{} // holds one token when finished and nothing is under way
	queue    [][]byte      // answers, encoded
	pong     bool          // the caller asks for a sign of life
	sending  bool
	out      []byte // of whoever sends
}

func newAnswering(ctx context.Context, s *Server, conn net.Conn, room chan struct{}) *answering {
	return &answering{
		service: &service{server: s}, ctx: ctx, conn: conn, room: room, running: map[uint64]context.CancelFunc{},
		idle: make(chan struct{}, 1),
	}
}

// read begins what is asked until the connection ends. Calls beyond the room there
// is wait on the wire.
func (a *answering) read(in *frames) error {
	for {
		frame, err := in.next()
		if err != nil {
			return err
		}
		req := &pb.CallsRequest{}
		if err := proto.Unmarshal(frame, req); err != nil {
			return invalid("calls do not decode")
		}
		calls := req.GetCalls()
		if n := len(calls); n > maxCalls {
			return invalid("%d calls in one frame: want at most %d", n, maxCalls)
		}
		if len(calls)+len(req.GetGone()) == 0 {
			a.live()
		}
		for i, p := range calls {
			last := i == len(calls)-1 && len(req.GetGone()) == 0 && len(in.buf) == 0
			if err := a.begin(p, last); err != nil {
				return err
			}
		}
		a.leave(req.GetGone())
	}
}

// begin begins one call. The last that has come, if it is done in no time, is done at
// once, here: to wake another goroutine for it would cost as much again. What comes
// meanwhile waits no longer for it than it would for the processor.
func (a *answering) begin(p *pb.Call, last bool) error {
	select {
	case a.room <- struct{}{}:
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
	within := time.Duration(p.GetWithin())
	if within <= 0 {
		within = math.MaxInt64
	}
	ctx, cancel := withTimeout(a.ctx, within)
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
	if brief := quick(p); brief && last {
		a.run(ctx, p, brief)
	} else {
		a.service.server.work(func() { a.run(ctx, p, brief) })
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
	case *pb.Call_Create: // in memory, until it is committed
		switch keyType, curve, plain := createHead(what.Create); {
		case !plain:
		case keyType == "aes", keyType == "generic-secret":
			return true
		case keyType == "ec":
			return curve == "secp256r1"
		}
	case *pb.Call_Use:
		switch what.Use.GetParams().GetMechanism() {
		case "ecdsa", "ecdsa-data", "hmac", "aes-gcm", "aes-cbc", "aes-ctr", "aes-ecb", "aes-cmac":
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

// run does one call, which is quick or not, and sends its answer.
func (a *answering) run(ctx context.Context, p *pb.Call, brief bool) {
	out := a.do(ctx, p, brief)
	b, err := proto.Marshal(out)
	if err != nil { // a text that is none; failures have none such
		b, _ = proto.Marshal(&pb.Answer{Id: p.GetId(), Failure: a.service.server.failure("Calls", err)})
	}
	a.mu.Lock()
	a.running[p.GetId()]()
	delete(a.running, p.GetId())
	a.queue = append(a.queue, b)
	a.sendLocked()
	a.under--
	a.noteIdle()
	a.mu.Unlock()
}

func (a *answering) do(ctx context.Context, p *pb.Call, brief bool) *pb.Answer {
	if slow := &a.service.server.slow; !brief && p.GetCommit() == nil {
		slow.Add(1)
		defer slow.Add(-1)
	}
	return a.service.answer(ctx, p)
}

// live answers an empty frame.
func (a *answering) live() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pong = true
	a.sendLocked()
}

// sendLocked sends answers until there are none, unless somebody does already. Each
// takes room until it is sent, so that those which a caller does not read do not pile
// up. If the connection is broken they are lost, as their callers know. It gives up
// a.mu while it writes, and before: many calls end at once, such as the commits of one
// durable step, and those that are about to be done share the frame, unless a slow call
// could keep the processor from them.
func (a *answering) sendLocked() {
	if a.sending {
		return
	}
	a.sending = true
	if a.under > 1 && a.service.server.slow.Load() == 0 {
		a.mu.Unlock()
		runtime.Gosched()
		a.mu.Lock()
	}
	for len(a.queue) > 0 || a.pong {
		b, n := a.frame()
		a.mu.Unlock()
		a.service.server.settle()
		a.conn.Write(b)
		for range n {
			<-a.room
		}
		a.mu.Lock()
	}
	a.queue, a.sending = nil, false
}

// frame takes one frame's worth off the queue: n answers.
func (a *answering) frame() (b []byte, n int) {
	b = beginFrame(a.out)
	for n < len(a.queue) && len(b) < batchBytes {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, a.queue[n])
		n++
	}
	a.queue, a.pong = a.queue[n:], false
	if a.out = endFrame(b); cap(b) > keptBytes {
		a.out = nil
	}
	return b, n
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
	name, do := "Calls", func() error { return invalid("a call that is none of use, create, prepare, commit and destroy") }
	switch what := p.GetWhat().(type) {
	case *pb.Call_Use:
		name, do = "Use", func() (err error) { out.Use, err = v.Use(ctx, what.Use); return err }
	case *pb.Call_Create:
		name, do = "Create", func() error {
			made, err := createIn(ctx, what.Create)
			if err == nil {
				out.Create, err = appendCreated(nil, made)
			}
			return err
		}
	case *pb.Call_Prepare:
		name, do = "Prepare", func() error { _, err := v.Prepare(ctx, what.Prepare); return err }
	case *pb.Call_Commit:
		name, do = "Commit", func() error { _, err := v.Commit(ctx, what.Commit); return err }
	case *pb.Call_Destroy:
		name, do = "Change", func() (err error) { out.Changed, err = v.destroy(ctx, what.Destroy); return err }
	}
	if err := v.server.within(name, do); err != nil {
		out.Use, out.Create, out.Changed = nil, nil, nil
		out.Late = errors.Is(err, context.DeadlineExceeded)
		out.Failure = v.server.failure(name, err)
	}
	return out
}

// destroy is the one change that calls in frames may ask for.
func (v *service) destroy(ctx context.Context, p *pb.ChangeRequest) (*pb.Masked, error) {
	if p.GetKind() != string(hsm.ChangeDestroy) {
		return nil, invalid("a change that is none of destroying a key: make it a call of its own")
	}
	return v.Change(ctx, p)
}

// failure puts the error of a call in a frame on the wire.
func (s *Server) failure(name string, err error) *pb.Failure {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: the call was broken off", hsm.ErrUnavailable) // nobody reads it
	}
	f, known := toFailure(err)
	if !known {
		s.log.Error("internal error in a request", "operation", name, "error", err.Error())
	}
	return f
}

// work runs f on one of the goroutines that stay, whose stacks have grown, or on
// one of its own if they are all busy.
func (s *Server) work(f func()) {
	select {
	case s.jobs <- f:
	default:
		go f()
	}
}

// worker runs calls until the server stops.
func (s *Server) worker() {
	for {
		select {
		case f := <-s.jobs:
			f()
		case <-s.over:
			return
		}
	}
}
