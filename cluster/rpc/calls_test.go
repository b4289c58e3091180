package rpc

import (
	"bytes"
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
)

// use signs data by HMAC, which a probe answers as the test wants.
func use(data []byte) hsm.Use {
	return hsm.Use{Kind: hsm.UseSign, Key: 1, Params: hsm.Params{Mechanism: "hmac", Hash: "sha256"}, Data: data}
}

// newCallSite is an HSM whose uses fail by the word in their data, and wait while
// the word is "wait"; asked gets a token when one does.
func newCallSite(t *testing.T, opts ...ServerOption) (s *site, remote *session, asked chan struct{}) {
	t.Helper()
	asked = make(chan struct{}, 1000)
	m := &probeModule{use: func(ctx context.Context, u hsm.Use) ([]byte, error) {
		switch string(u.Data) {
		case "refuse":
			return nil, fmt.Errorf("%w: as asked", hsm.ErrAttribute)
		case "panic":
			panic("key material")
		case "wait":
			asked <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return u.Data, nil
	}}
	s, r := newProbe(t, m, opts...)
	return s, r.(*session), asked
}

// TestCallsAnswerTheirCallers: many at once on one stream, and each gets its own
// answer or error.
func TestCallsAnswerTheirCallers(t *testing.T) {
	c := &calls{}
	_, s, _ := newCallSite(t, WithObserver(c.observe))
	const callers, each = 50, 20
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for j := range each {
				data := fmt.Appendf(nil, "%d of %d", j, i)
				if got, err := s.Use(t.Context(), use(data)); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%q, %v; want %q", got, err, data)
				}
			}
			if _, err := s.Use(t.Context(), use([]byte("refuse"))); !errors.Is(err, hsm.ErrAttribute) {
				t.Errorf("%v, want ErrAttribute", err)
			}
			if _, err := s.Use(t.Context(), use([]byte("panic"))); !errors.Is(err, ErrInternal) {
				t.Errorf("%v, want ErrInternal", err)
			}
		})
	}
	all.Wait()
	if got := [3]int{c.count("Use ok"), c.count("Use attribute"), c.count("Use internal")}; got != [3]int{callers * each, callers, callers} {
		t.Errorf("%v uses were observed", got)
	}
	if n := len(s.calls.line.waiting); n != 0 {
		t.Errorf("%d calls are still waited for", n)
	}
}

// TestLargeCallsGoAlone: they arrive whole, and not on the stream.
func TestLargeCallsGoAlone(t *testing.T) {
	_, s, _ := newCallSite(t)
	for _, n := range []int{0, 1, maxCallBytes - 200, maxCallBytes, 3 << 20} {
		data := bytes.Repeat([]byte{7}, n)
		if got, err := s.Use(t.Context(), use(data)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: %d bytes, %v", n, len(got), err)
		}
	}
	if n := s.calls.line.last; n != 3 {
		t.Errorf("%d calls went on the stream, want 3", n)
	}
	u := use(nil)
	u.Params.Mechanism = "hm\xffac"
	if _, err := s.Use(t.Context(), u); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("a word that is not text: %v, want ErrInvalid", err)
	}
	if _, err := s.Use(t.Context(), use(nil)); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// TestCallGivenUp: its caller is not kept waiting, the HSM stops working on it, and
// the others are not disturbed.
func TestCallGivenUp(t *testing.T) {
	c := &calls{}
	_, s, asked := newCallSite(t, WithObserver(c.observe))
	ended := make(chan error, 2)
	other := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // so that none is alone, and done where the stream is read
		_, err := s.Use(ctx, slowUse())
		ended <- err
	}()
	<-asked
	life, end := context.WithCancel(t.Context())
	go func() {
		_, err := s.Use(life, slowUse())
		other <- err
	}()
	<-asked
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	eventually(t.Context(), t, "the HSM stops", func() bool { return c.count("Use canceled") == 1 })
	if got, err := s.Use(t.Context(), use([]byte("x"))); err != nil || string(got) != "x" {
		t.Errorf("another call: %q, %v", got, err)
	}
	limited, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Use(limited, slowUse()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
	eventually(t.Context(), t, "the HSM stops", func() bool { return c.count("Use deadline")+c.count("Use canceled") == 2 })
	end()
	if err := <-other; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
}

// slowUse is one that is not done where the stream is read.
func slowUse() hsm.Use {
	u := use([]byte("wait"))
	u.Params.Mechanism = "rsa-pss"
	return u
}

// TestCallsEndWithTheSession: whoever waits learns it.
func TestCallsEndWithTheSession(t *testing.T) {
	ends := map[string]func(*site, *session){
		"the session is closed": func(_ *site, s *session) { s.Close() },
		"the module is closed":  func(_ *site, s *session) { s.replica.module.Close() },
	}
	for name, end := range ends {
		_, s, asked := newCallSite(t)
		errs := make(chan error, 10)
		for range cap(errs) {
			go func() {
				_, err := s.Use(t.Context(), slowUse())
				errs <- err
			}()
		}
		for range cap(errs) {
			<-asked
		}
		end(nil, s)
		for range cap(errs) {
			if err := <-errs; !errors.Is(err, hsm.ErrSession) {
				t.Errorf("%s: %v, want ErrSession", name, err)
			}
		}
		if _, err := s.Use(t.Context(), use(nil)); !errors.Is(err, hsm.ErrSession) {
			t.Errorf("%s: afterwards: %v, want ErrSession", name, err)
		}
	}
}

// TestCallsOfALostConnection: nobody is told that nothing was done, and nothing is
// sent again.
func TestCallsOfALostConnection(t *testing.T) {
	c := &calls{}
	s, _, asked := newCallSite(t, WithObserver(c.observe))
	p := newProxy(t, s.address)
	remote := open(t, s.dialAt(p.address(), "client", "app"))
	errs := make(chan error, 10)
	for range cap(errs) {
		go func() {
			_, err := remote.Use(t.Context(), slowUse())
			errs <- err
		}()
	}
	for range cap(errs) {
		<-asked
	}
	p.cut()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%v, want ErrUnavailable", err)
		}
	}
	eventually(t.Context(), t, "the HSM stops", func() bool { return c.count("Use canceled") == cap(errs) })
	eventually(t.Context(), t, "the session is over", func() bool {
		_, err := remote.Use(t.Context(), use(nil))
		return errors.Is(err, hsm.ErrSession)
	})
	if n := c.count("Use ok"); n != 0 {
		t.Errorf("%d uses on a connection that is not the session's", n)
	}
}

// TestCallsAreAnsweredBeforeTheServerStops: those that were begun.
func TestCallsAreAnsweredBeforeTheServerStops(t *testing.T) {
	begun, proceed := make(chan struct{}), make(chan struct{})
	m := &probeModule{use: func(_ context.Context, u hsm.Use) ([]byte, error) {
		close(begun)
		<-proceed
		return u.Data, nil
	}}
	s, remote := newProbe(t, m)
	u := use([]byte("last"))
	u.Params.Mechanism = "rsa-pss"
	done := make(chan error, 1)
	go func() {
		got, err := remote.Use(t.Context(), u)
		if string(got) != "last" {
			err = errors.Join(err, fmt.Errorf("answer %q", got))
		}
		done <- err
	}()
	<-begun
	stopped := make(chan struct{})
	go func() { s.server.Stop(); close(stopped) }()
	eventually(t.Context(), t, "the server stops", func() bool {
		s.server.gate.mu.Lock()
		defer s.server.gate.mu.Unlock()
		return s.server.gate.closed
	})
	close(proceed)
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-stopped
}

// olderCalls is an HSM that does not know the stream.
type olderCalls struct {
	pb.HSMClient
	asked atomic.Int64
}

func (o *olderCalls) Calls(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.CallsRequest, pb.CallsReply], error) {
	o.asked.Add(1)
	return olderStream{ctx: ctx}, nil
}

// olderStream is what gRPC makes of a stream that the other side does not know.
type olderStream struct {
	grpc.BidiStreamingClient[pb.CallsRequest, pb.CallsReply]
	ctx context.Context
}

func (olderStream) Send(*pb.CallsRequest) error { return nil }
func (olderStream) Recv() (*pb.CallsReply, error) {
	return nil, status.Error(codes.Unimplemented, "unknown method Calls")
}

func TestCallsToAnOlderHSM(t *testing.T) {
	_, s, _ := newCallSite(t)
	older := &olderCalls{HSMClient: s.replica.api}
	s.replica.module.api = older
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if got, err := s.Use(t.Context(), use([]byte("x"))); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
	asked := older.asked.Load()
	if _, err := s.Use(t.Context(), use(nil)); err != nil || older.asked.Load() != asked {
		t.Errorf("it is asked again: %v", err)
	}
}

// awayCalls is an HSM to which no stream can be opened; with stuck, not before the
// caller gives up.
type awayCalls struct {
	pb.HSMClient
	stuck bool
}

func (a *awayCalls) Calls(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.CallsRequest, pb.CallsReply], error) {
	if a.stuck {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return nil, status.Error(codes.Unavailable, "connection refused")
}

// TestACallThatFindsNoConnection is one of an HSM that is away, so that another is
// asked: not one that its caller has broken off.
func TestACallThatFindsNoConnection(t *testing.T) {
	_, s, _ := newCallSite(t)
	s.replica.module.api = &awayCalls{HSMClient: s.replica.api}
	if _, err := s.Use(t.Context(), use([]byte("x"))); !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, context.Canceled) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

// TestCallsDoNotWaitForAStream: while one cannot be opened, each caller has its own
// deadline, and closing the session ends nothing that is not there.
func TestCallsDoNotWaitForAStream(t *testing.T) {
	_, s, _ := newCallSite(t)
	api := s.replica.api
	s.replica.module.api = &awayCalls{HSMClient: api, stuck: true}
	long, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Use(long, use([]byte("x")))
		first <- err
	}()
	eventually(t.Context(), t, "a stream is being opened", func() bool { return len(s.calls.opening) == 1 })
	short, end := context.WithTimeout(t.Context(), time.Millisecond)
	defer end()
	if _, err := s.Use(short, use([]byte("y"))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second caller: %v, want its own deadline", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first caller: %v, want that it was canceled", err)
	}
	s.replica.module.api = api
	if got, err := s.Use(t.Context(), use([]byte("z"))); err != nil || string(got) != "z" {
		t.Errorf("then: %q, %v", got, err)
	}
}

// TestCallsOfAHostileCaller: refused, each by itself or the stream, and the HSM
// goes on.
func TestCallsOfAHostileCaller(t *testing.T) {
	site, s, asked := newCallSite(t)
	hmac := func(id uint64, word string) *pb.Call {
		return &pb.Call{Id: id, Within: -5, What: &pb.Call_Use{Use: toUse(use([]byte(word)))}}
	}
	begin := func(calls ...*pb.Call) pb.HSM_CallsClient {
		out, err := s.replica.outgoing(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		stream, err := s.replica.api.Calls(out)
		if err == nil {
			err = stream.Send(&pb.CallsRequest{Calls: calls, Gone: []uint64{5, 6}})
		}
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	for name, call := range map[string]*pb.Call{
		"nothing": {}, "no use": {What: &pb.Call_Use{}}, "no create": {What: &pb.Call_Create{}}, "no prepare": {What: &pb.Call_Prepare{}},
		"short op": {What: &pb.Call_Commit{Commit: &pb.OpRequest{Op: []byte{1}}}},
	} {
		reply, err := begin(call).Recv()
		if name == "no use" && err == nil {
			continue // the probe does not mind
		}
		if err != nil || len(reply.GetAnswers()) != 1 || !errors.Is(fromFailure(reply.GetAnswers()[0].GetFailure()), hsm.ErrInvalid) {
			t.Errorf("%s: %v, %v; want ErrInvalid", name, reply, err)
		}
	}
	twice := begin(hmac(1, "wait"), hmac(1, "wait"))
	<-asked
	for name, stream := range map[string]pb.HSM_CallsClient{"one id twice": twice, "too many": begin(make([]*pb.Call, maxSteps+1)...)} {
		if err := drain(stream.Recv, func(*pb.CallsReply) error { return nil }); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
	stream, err := s.replica.api.Calls(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a session: %v", err)
	}
	if _, err := s.Use(t.Context(), use(nil)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	eventually(t.Context(), t, "all calls are over and none takes room", func() bool {
		site.server.conns.mu.Lock()
		defer site.server.conns.mu.Unlock()
		for _, c := range site.server.conns.all {
			if len(c.room) > 0 {
				return false
			}
		}
		return true
	})
}

// hostileStream answers what was not asked, and then breaks off.
type hostileStream struct {
	olderStream
	left *atomic.Int64
}

func (h hostileStream) Recv() (*pb.CallsReply, error) {
	if h.left.Add(-1) < 0 {
		return nil, status.Error(codes.Internal, "so much for that")
	}
	return &pb.CallsReply{Answers: []*pb.Answer{{}, {Id: 99, Use: &pb.UseReply{Data: []byte("forged")}}}}, nil
}

type hostileCalls struct {
	pb.HSMClient
	left atomic.Int64
}

func (h *hostileCalls) Calls(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.CallsRequest, pb.CallsReply], error) {
	return hostileStream{olderStream{ctx: ctx}, &h.left}, nil
}

func TestCallsOfAHostileHSM(t *testing.T) {
	_, s, _ := newCallSite(t)
	h := &hostileCalls{HSMClient: s.replica.api}
	h.left.Store(3)
	s.replica.module.api = h
	if got, err := s.Use(t.Context(), use([]byte("x"))); !errors.Is(err, hsm.ErrUnavailable) || got != nil {
		t.Errorf("%q, %v; want ErrUnavailable", got, err)
	}
}
