package rpc

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// claimModule remembers for whom its operations were.
type claimModule struct {
	hsm.Module
	gate chan struct{} // commits wait until it is closed
	mu   sync.Mutex
	seen []string
}

func (m *claimModule) note(ctx context.Context, what string) {
	a, ok := hsm.ApplicationOf(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !ok {
		m.seen = append(m.seen, what+" nobody")
		return
	}
	m.seen = append(m.seen, what+" "+a.String())
}

func (m *claimModule) count(line string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.seen {
		if s == line {
			n++
		}
	}
	return n
}

type claimSession struct {
	probe
	m *claimModule
}

func (m *claimModule) Session(ctx context.Context) (hsm.Session, error) {
	m.note(ctx, "session")
	return &claimSession{probe{module: &probeModule{}}, m}, nil
}

func (s *claimSession) Abort(ctx context.Context, _ hsm.OpID) error {
	s.m.note(ctx, "abort")
	return nil
}

func (s *claimSession) Commit(ctx context.Context, _ hsm.OpID) error {
	<-s.m.gate
	s.m.note(ctx, "commit")
	return nil
}

func (s *claimSession) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	s.m.note(ctx, "use")
	return u.Data, nil
}

func newClaimSite(t *testing.T) (*claimModule, *session, context.Context) {
	t.Helper()
	m := &claimModule{gate: make(chan struct{})}
	s := &site{t: t, cluster: hsm.NewClusterID(), id: hsm.NewHSMID()}
	s.serve(func(pki.Identity) hsm.Module { return m })
	ctx := hsm.WithApplication(t.Context(), hsm.Application{PID: 12, UID: 3, Program: "nginx"})
	opened, err := s.dial(pki.KindClient, "alice").Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return m, opened.(*session), ctx
}

// TestApplicationsTravel: with the start of a session and with each call; a call
// that names none has none, whatever others on the session named.
func TestApplicationsTravel(t *testing.T) {
	m, s, ctx := newClaimSite(t)
	for _, c := range []context.Context{ctx, t.Context()} {
		if err := s.Abort(c, newOp()); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"session pid 12 uid 3 program nginx", "abort pid 12 uid 3 program nginx", "abort nobody"} {
		if m.count(want) != 1 {
			t.Errorf("%d of %q in %q", m.count(want), want, m.seen)
		}
	}
}

// TestStepsThatTravelTogetherKeepTheirApplications: each step of a creation is for
// the application it was asked for by.
func TestStepsThatTravelTogetherKeepTheirApplications(t *testing.T) {
	m, s, _ := newClaimSite(t)
	framed(t, s)
	const each = 20
	var all sync.WaitGroup
	for i := range 2 * each {
		all.Go(func() {
			ctx := hsm.WithApplication(t.Context(), hsm.Application{PID: int64(1 + i%2), Program: "app"})
			if err := s.Commit(ctx, newOp()); err != nil {
				t.Error(err)
			}
		})
	}
	close(m.gate)
	all.Wait()
	for _, want := range []string{"commit pid 1 uid 0 program app", "commit pid 2 uid 0 program app"} {
		if m.count(want) != each {
			t.Errorf("%d of %q, want %d", m.count(want), want, each)
		}
	}
	if n := s.calls.last.Load(); n != 2*each {
		t.Errorf("%d of %d calls went in frames", n, 2*each)
	}
}

// TestCallsOfOneStreamKeepTheirApplications: small calls share a stream, and each is for
// the application it was made for, or for none.
func TestCallsOfOneStreamKeepTheirApplications(t *testing.T) {
	m, s, ctx := newClaimSite(t)
	framed(t, s)
	other := hsm.WithApplication(t.Context(), hsm.Application{PID: 7, Program: "sshd"})
	const each = 20
	var all sync.WaitGroup
	for _, c := range []context.Context{ctx, other, t.Context()} {
		all.Go(func() {
			for range each {
				if _, err := s.Use(c, hsm.Use{Kind: hsm.UseSign, Key: 1, Data: []byte("x")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for _, want := range []string{"use pid 12 uid 3 program nginx", "use pid 7 uid 0 program sshd", "use nobody"} {
		if m.count(want) != each {
			t.Errorf("%d of %q, want %d", m.count(want), want, each)
		}
	}
	if n := s.calls.last.Load(); n != 3*each {
		t.Errorf("%d of %d calls shared the stream", n, 3*each)
	}
}

// TestHostileClaims: what cannot be read is recorded as a claim of nothing, and no
// claim fails a call, forges a line or is longer than it may be.
func TestHostileClaims(t *testing.T) {
	m, s, _ := newClaimSite(t)
	encoded := func(a *pb.Application) string {
		b, err := proto.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		headers []string
		want    string
	}{
		{nil, "abort nobody"},
		{[]string{"\xff\xff"}, "abort pid 0 uid 0 program ?"},
		{[]string{encoded(&pb.Application{Pid: 1}), encoded(&pb.Application{Pid: 2})}, "abort pid 0 uid 0 program ?"},
		{[]string{encoded(&pb.Application{Pid: 4, Program: strings.Repeat("x", maxApplication)})}, "abort pid 0 uid 0 program ?"},
		{[]string{encoded(&pb.Application{Pid: 5, Program: strings.Repeat("x", hsm.MaxProgram+1)})}, "abort pid 5 uid 0 program " + strings.Repeat("x", hsm.MaxProgram)},
		{[]string{encoded(&pb.Application{Pid: -6, Uid: -6, Program: "a\n{\"event\":\"login\"}\x1b"})}, "abort pid 0 uid 0 program a?{\"event\":\"login\"}?"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		for _, h := range c.headers {
			ctx = metadata.AppendToOutgoingContext(ctx, applicationHeader, h)
		}
		before := m.count(c.want)
		if err := s.Abort(ctx, newOp()); err != nil {
			t.Errorf("%q: %v", c.headers, err)
		}
		if m.count(c.want) != before+1 {
			t.Errorf("%q: %q, want %q", c.headers, m.seen[len(m.seen)-1], c.want)
		}
		cancel()
	}
}

// FuzzClaims: any header makes an application that may be recorded.
func FuzzClaims(f *testing.F) {
	f.Add("\x08\x0c\x10\x03\x1a\x05nginx")
	f.Fuzz(func(t *testing.T, header string) {
		ctx := claimed(metadata.NewIncomingContext(context.Background(), metadata.Pairs(applicationHeader, header)))
		a, ok := hsm.ApplicationOf(ctx)
		if !ok || a != a.Claimed() {
			t.Fatalf("%+v %t", a, ok)
		}
	})
}
