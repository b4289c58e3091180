package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// Steps of creations are small, and under load there are many on their way to
// an HSM. A call of its own for each costs more than the step: so a session has
// at most stepCalls calls with steps on their way, and steps that come meanwhile
// go together in the next. A step that is alone goes at once, as a call of its
// own. What a step does, and what it means when it fails, is the same both ways;
// the HSM does the steps of one call side by side, and they share its syncs.

const (
	// stepCalls lets one call travel while the HSM works on another.
	stepCalls = 2
	// maxStepBytes keeps large steps, and those that take long, out of calls with
	// others.
	maxStepBytes = 16 << 10
	// stepTime bounds a call with several steps; callers give up by themselves.
	stepTime = 30 * time.Second
)

// stepper sends the steps of one session. It is safe for concurrent use.
type stepper struct {
	replica *replicaClient
	calls   *caller

	older atomic.Bool // the HSM does not know several steps in one call

	mu     sync.Mutex
	flying int // calls on their way
	queue  []*step
}

// step is one step that waits for others.
type step struct {
	ctx  context.Context
	what *pb.Step
	done chan struct{} // closed when outcome or err is set
	out  *pb.Outcome
	err  error
}

func (s *stepper) prepare(ctx context.Context, req *pb.PrepareRequest) error {
	_, err := s.do(ctx, &pb.Step{What: &pb.Step_Prepare{Prepare: req}}, func() (*pb.CreateReply, error) {
		ok, err := s.calls.prepare(ctx, req)
		if !ok {
			_, err = ask(ctx, s.replica, s.replica.api.Prepare, req, nothing)
		}
		return nil, err
	})
	return err
}

func (s *stepper) commit(ctx context.Context, req *pb.OpRequest) error {
	_, err := s.do(ctx, &pb.Step{What: &pb.Step_Commit{Commit: req}}, func() (*pb.CreateReply, error) {
		ok, err := s.calls.commit(ctx, req)
		if !ok {
			_, err = ask(ctx, s.replica, s.replica.api.Commit, req, nothing)
		}
		return nil, err
	})
	return err
}

// create sends only what is made in no time together with others. (What carries
// key material never waits in a queue either.)
func (s *stepper) create(ctx context.Context, req *pb.CreateRequest) (hsm.Created, error) {
	alone := func() (hsm.Created, error) { return s.createAlone(ctx, req) }
	quick := req.Token && req.Method == string(hsm.MethodGenerate) && (req.Type == "aes" || req.Type == "generic-secret")
	if !quick {
		return alone()
	}
	var made hsm.Created
	reply, err := s.do(ctx, &pb.Step{What: &pb.Step_Create{Create: req}}, func() (*pb.CreateReply, error) {
		var err error
		made, err = alone()
		return nil, err
	})
	if err != nil || reply == nil {
		return made, err
	}
	return s.made(reply)
}

// createAlone is a call for this creation only.
func (s *stepper) createAlone(ctx context.Context, req *pb.CreateRequest) (hsm.Created, error) {
	reply, ok, err := s.calls.create(ctx, req)
	switch {
	case !ok:
		return ask(ctx, s.replica, s.replica.api.Create, req, fromCreated)
	case err != nil:
		return hsm.Created{}, err
	}
	return s.made(reply)
}

func (s *stepper) made(reply *pb.CreateReply) (hsm.Created, error) {
	made, err := fromCreated(reply)
	if err != nil {
		return hsm.Created{}, fmt.Errorf("answer of the HSM at %s: %w", s.replica.address, err)
	}
	return made, nil
}

// do does one step: alone if nothing is on its way, or with others. reply is nil
// if it went alone.
func (s *stepper) do(ctx context.Context, what *pb.Step, alone func() (*pb.CreateReply, error)) (reply *pb.CreateReply, err error) {
	if s.older.Load() || proto.Size(what) > maxStepBytes {
		return alone()
	}
	if s.first() {
		defer s.next()
		return alone()
	}
	what.Application = toApplication(ctx)
	t := &step{ctx: ctx, what: what, done: make(chan struct{})}
	s.join(t)
	select {
	case <-t.done:
	case <-ctx.Done():
		return nil, s.replica.fail(ctx, ctx.Err())
	}
	if errors.Is(t.err, errOlder) {
		s.older.Store(true)
		return alone() // nothing was done
	}
	if t.err != nil {
		return nil, t.err
	}
	if f := t.out.GetFailure(); f != nil {
		return nil, fromFailure(f)
	}
	if reply = t.out.GetCreate(); reply == nil {
		reply = &pb.CreateReply{}
	}
	return reply, nil
}

// first tells whether nothing is on its way, and takes its place if so.
func (s *stepper) first() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying > 0 {
		return false
	}
	s.flying++
	return true
}

// join has a step sent with the next call.
func (s *stepper) join(t *step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, t)
	if s.flying < stepCalls {
		s.flying++
		go s.fly(nil)
	}
}

// next ends what first began. Those who wait meanwhile are not kept waiting by
// the caller, nor the caller by them.
func (s *stepper) next() {
	if batch := s.take(); batch != nil {
		go s.fly(batch)
	}
}

// fly makes calls until nobody waits.
func (s *stepper) fly(batch []*step) {
	if batch == nil {
		batch = s.take()
	}
	for ; batch != nil; batch = s.take() {
		s.call(batch)
	}
}

// take takes the steps for one call; nil, and the place is free, if nobody
// waits. A caller who has given up has left, and its step is not sent.
func (s *stepper) take() (batch []*step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) > 0 && len(batch) < maxSteps {
		if t := s.queue[0]; t.ctx.Err() == nil {
			batch = append(batch, t)
		}
		s.queue = s.queue[1:]
	}
	if batch == nil {
		s.queue, s.flying = nil, s.flying-1
	}
	return batch
}

// call sends steps in one call and hands out what became of each. If it is not
// known what became of them, every caller gets the error of the call, as it would
// have of one of its own.
func (s *stepper) call(batch []*step) {
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	req := &pb.StepsRequest{Steps: make([]*pb.Step, len(batch))}
	for i, t := range batch {
		req.Steps[i] = t.what
	}
	outcomes, err := ask(ctx, s.replica, s.replica.api.Steps, req, func(p *pb.StepsReply) ([]*pb.Outcome, error) {
		if len(p.GetOutcomes()) != len(batch) {
			return nil, invalid("%d outcomes of %d steps", len(p.GetOutcomes()), len(batch))
		}
		return p.GetOutcomes(), nil
	})
	for i, t := range batch {
		if t.err = err; err == nil {
			t.out = outcomes[i]
		}
		close(t.done)
	}
}

// Steps does several steps side by side.
func (v *service) Steps(ctx context.Context, p *pb.StepsRequest) (*pb.StepsReply, error) {
	if n := len(p.GetSteps()); n == 0 || n > maxSteps {
		return nil, invalid("%d steps in one call: want 1 to %d", n, maxSteps)
	}
	if _, err := sessionOf(ctx); err != nil {
		return nil, err
	}
	reply := &pb.StepsReply{Outcomes: make([]*pb.Outcome, len(p.GetSteps()))}
	var all sync.WaitGroup
	for i, step := range p.GetSteps() {
		all.Add(1)
		v.server.work(func() {
			defer all.Done()
			reply.Outcomes[i] = v.step(ctx, step)
		})
	}
	all.Wait()
	return reply, nil
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

// worker runs steps until the server stops.
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

// step does one step as the call of its own that it stands for.
func (v *service) step(ctx context.Context, p *pb.Step) *pb.Outcome {
	out := &pb.Outcome{}
	ctx = withApplication(ctx, p.GetApplication())
	name, do := v.creation(ctx, p, &out.Create)
	if do == nil {
		name, do = "Steps", func() error { return invalid("a step that is none of create, prepare and commit") }
	}
	if err := v.server.within(name, do); err != nil {
		out.Create = nil
		out.Failure = v.server.failure(name, err)
	}
	return out
}

// creating is what a step and a call of a stream may both hold.
type creating interface {
	GetCreate() *pb.CreateRequest
	GetPrepare() *pb.PrepareRequest
	GetCommit() *pb.OpRequest
}

// creation is the call that a step of a creation stands for; do is nil if p is none. What
// a create makes goes to made.
func (v *service) creation(ctx context.Context, p creating, made **pb.CreateReply) (name string, do func() error) {
	switch create, prepare, commit := p.GetCreate(), p.GetPrepare(), p.GetCommit(); {
	case create != nil:
		return "Create", func() (err error) { *made, err = v.Create(ctx, create); return err }
	case prepare != nil:
		return "Prepare", func() error { _, err := v.Prepare(ctx, prepare); return err }
	case commit != nil:
		return "Commit", func() error { _, err := v.Commit(ctx, commit); return err }
	}
	return "", nil
}

// failure puts the error of a step on the wire.
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
