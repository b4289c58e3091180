package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// stepModule is an HSM whose commits wait, and then do what the operation says.
type stepModule struct {
	hsm.Module
	open    chan struct{} // commits wait until it is closed
	commits atomic.Int64
}

type stepProbe struct {
	probe
	m *stepModule
}

func (m *stepModule) Session(context.Context) (hsm.Session, error) {
	return &stepProbe{probe{module: &probeModule{}}, m}, nil
}

// Commit refuses operations whose first byte is 1, and panics where it is 2.
func (p *stepProbe) Commit(_ context.Context, op hsm.OpID) error {
	<-p.m.open
	p.m.commits.Add(1)
	switch op[0] {
	case 1:
		return fmt.Errorf("%w: this one", hsm.ErrOp)
	case 2:
		panic("key material")
	}
	return nil
}

func (p *stepProbe) Prepare(context.Context, hsm.OpID, time.Duration, []hsm.MaskedObject) error {
	return nil
}

// calls counts the operations that a server has seen.
type calls struct {
	mu sync.Mutex
	by map[string]int
}

func (c *calls) observe(operation string, _ time.Duration, code string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int{}
	}
	c.by[operation]++
	c.by[operation+" "+code]++
}

func (c *calls) count(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[what]
}

func newStepSite(t *testing.T) (*session, *stepModule, *calls) {
	t.Helper()
	m, c := &stepModule{open: make(chan struct{})}, &calls{}
	s := &site{t: t, cluster: hsm.NewClusterID(), id: hsm.NewHSMID()}
	s.serve(func(pki.Identity) hsm.Module { return m }, WithObserver(c.observe))
	t.Cleanup(func() { // the server's own waits for the commits
		select {
		case <-m.open:
		default:
			close(m.open)
		}
	})
	return open(t, s.dial(pki.KindClient, "steps")).(*session), m, c
}

// waiting waits until so many steps are queued.
func waiting(t *testing.T, s *session, n int) {
	t.Helper()
	waitFor(t, s, 2, n)
}

// waitFor waits until so many calls are on their way and so many steps queued.
func waitFor(t *testing.T, s *session, flying, queued int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.steps.mu.Lock()
		calls, have := s.steps.flying, len(s.steps.queue)
		s.steps.mu.Unlock()
		if calls == flying && have == queued {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d calls are on their way and %d steps wait, want %d and %d", calls, have, flying, queued)
		}
	}
}

// stage begins n steps: one goes alone, one in the second call, the others wait.
func stage(t *testing.T, s *session, n int, begin func(i int)) {
	t.Helper()
	for i := range 2 {
		begin(i)
		waitFor(t, s, i+1, 0)
	}
	for i := 2; i < n; i++ {
		begin(i)
	}
	waiting(t, s, n-2)
}

// TestStepsShareCalls: while calls are on their way further steps wait and go
// together, and each caller gets the outcome of its own step.
func TestStepsShareCalls(t *testing.T) {
	s, m, c := newStepSite(t)
	const callers = 200
	errs := make([]error, callers)
	var all sync.WaitGroup
	commit := func(i int) {
		all.Go(func() { errs[i] = s.Commit(t.Context(), hsm.OpID{byte(i % 3), 1, byte(i)}) })
	}
	stage(t, s, callers, commit)
	close(m.open)
	all.Wait()
	for i, err := range errs {
		want := []error{nil, hsm.ErrOp, ErrInternal}[i%3]
		if !errors.Is(err, want) {
			t.Errorf("step %d: %v, want %v", i, err, want)
		}
	}
	if n := c.count("Commit"); n != callers || c.count("Commit op") == 0 || c.count("Commit internal") == 0 {
		t.Errorf("%d commits were observed, want %d: %v", n, callers, c.by)
	}
	// The second call with one step, and 198 steps, 64 at a time.
	if n := c.count("Steps"); n < 4 || n > 6 {
		t.Errorf("%d calls with several steps", n)
	}
	waitFor(t, s, 0, 0)
}

// TestAStepGivenUpIsNotSent: its caller is not kept waiting.
func TestAStepGivenUpIsNotSent(t *testing.T) {
	s, m, _ := newStepSite(t)
	var all sync.WaitGroup
	for i := range 2 {
		all.Go(func() {
			if err := s.Commit(t.Context(), hsm.OpID{0, 1, byte(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.steps.mu.Lock()
		flying, queued := s.steps.flying, len(s.steps.queue)
		s.steps.mu.Unlock()
		if flying == 2 && queued == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("two calls do not get on their way")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- s.Commit(ctx, hsm.OpID{0, 2}) }()
	waiting(t, s, 1)
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	close(m.open)
	all.Wait()
	if n := m.commits.Load(); n != 2 {
		t.Errorf("%d commits, want 2: the one that was given up is not sent", n)
	}
}

// TestStepsEndWithTheSession: whoever waits learns it.
func TestStepsEndWithTheSession(t *testing.T) {
	s, m, _ := newStepSite(t)
	errs := make(chan error, 10)
	stage(t, s, cap(errs), func(i int) {
		go func() { errs <- s.Commit(t.Context(), hsm.OpID{0, 1, byte(i)}) }()
	})
	s.replica.module.Close()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, hsm.ErrSession) {
			t.Errorf("%v, want ErrSession", err)
		}
	}
	close(m.open)
}

// olderAPI is an HSM that does not know several steps in one call.
type olderAPI struct {
	pb.HSMClient
	asked atomic.Int64
}

func (o *olderAPI) Steps(context.Context, *pb.StepsRequest, ...grpc.CallOption) (*pb.StepsReply, error) {
	o.asked.Add(1)
	return nil, status.Error(codes.Unimplemented, "unknown method Steps")
}

func TestStepsToAnOlderHSMGoAlone(t *testing.T) {
	s, m, c := newStepSite(t)
	older := &olderAPI{HSMClient: s.replica.api}
	s.replica.module.api = older
	errs := make(chan error, 20)
	for i := range cap(errs) {
		go func() { errs <- s.Commit(t.Context(), hsm.OpID{0, 1, byte(i)}) }()
	}
	for end := time.Now().Add(time.Minute); older.asked.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is never asked for several steps")
		}
	}
	close(m.open)
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := c.count("Commit ok"); n != cap(errs) {
		t.Errorf("%d commits, want %d", n, cap(errs))
	}
	asked := older.asked.Load()
	if err := s.Commit(t.Context(), hsm.OpID{0, 3}); err != nil || older.asked.Load() != asked {
		t.Errorf("it is asked again: %v", err)
	}
}

// lyingAPI answers with another number of outcomes than there were steps.
type lyingAPI struct{ pb.HSMClient }

func (lyingAPI) Steps(context.Context, *pb.StepsRequest, ...grpc.CallOption) (*pb.StepsReply, error) {
	return &pb.StepsReply{}, nil
}

func TestStepsOfAHostileHSM(t *testing.T) {
	s, m, _ := newStepSite(t)
	s.replica.module.api = lyingAPI{s.replica.api}
	errs := make(chan error, 3)
	for i := range cap(errs) {
		go func() { errs <- s.Commit(t.Context(), hsm.OpID{0, 1, byte(i)}) }()
	}
	for range cap(errs) - 1 {
		if err := <-errs; !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	}
	close(m.open)
	if err := <-errs; err != nil { // the one that went alone
		t.Error(err)
	}
}

func TestStepsOfAHostileCaller(t *testing.T) {
	s, m, _ := newStepSite(t)
	close(m.open)
	ask := func(steps ...*pb.Step) ([]*pb.Outcome, error) {
		out, err := s.replica.outgoing(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		reply, err := s.replica.api.Steps(out, &pb.StepsRequest{Steps: steps})
		return reply.GetOutcomes(), err
	}
	if _, err := ask(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no steps: %v", err)
	}
	if _, err := ask(make([]*pb.Step, maxSteps+1)...); status.Code(err) != codes.InvalidArgument {
		t.Errorf("too many steps: %v", err)
	}
	for name, step := range map[string]*pb.Step{
		"nothing": {}, "short op": {What: &pb.Step_Commit{Commit: &pb.OpRequest{Op: []byte{1}}}},
		"empty prepare": {What: &pb.Step_Prepare{}}, "empty create": {What: &pb.Step_Create{}}, "empty commit": {What: &pb.Step_Commit{}},
	} {
		outcomes, err := ask(step, &pb.Step{What: &pb.Step_Commit{Commit: &pb.OpRequest{Op: make([]byte, 16)}}})
		if err != nil || len(outcomes) != 2 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if failure := outcomes[0].GetFailure(); failure == nil || !errors.Is(fromFailure(failure), hsm.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, failure)
		}
	}
	if _, err := s.replica.api.Steps(t.Context(), &pb.StepsRequest{Steps: []*pb.Step{{}}}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a session: %v", err)
	}
}
