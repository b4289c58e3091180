package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

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
	return s, framed(t, r), asked
}

// framed has a session make its calls in frames from the first one on.
func framed(t testing.TB, r hsm.Session) *session {
	t.Helper()
	s := r.(*session)
	if err := s.calls.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
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
	if n := s.calls.last.Load(); n != 3 {
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
	remote := framed(t, open(t, s.dialAt(p.address(), "client", "app")))
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
	s, probed := newProbe(t, m)
	remote := framed(t, probed)
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

// TestCallsToAnOlderHSM: one that speaks gRPC on every connection is asked once
// whether it knows another, and called in the old way.
func TestCallsToAnOlderHSM(t *testing.T) {
	s := &site{t: t, cluster: hsm.NewClusterID(), id: hsm.NewHSMID(), keyring: hsm.NewKeyring(), older: true}
	s.hsm = newSoftOf(t, s.id, s.cluster, s.keyring)
	s.serve(s.module)
	s.users("bob")
	bob := loginAs(t, s.dial(pki.KindClient, "app"), hsm.RoleCryptoUser, "bob").(*session)
	if err := bob.calls.connect(t.Context()); !errors.Is(err, errOlder) {
		t.Fatalf("%v, want that the HSM is older", err)
	}
	key := create(t, bob, hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "generic-secret", Size: 32, Token: true,
		Attributes: map[string]string{"label": "k", "sign": "true"}}).Keys[0].Ref
	u := use([]byte("x"))
	u.Key, u.Kind = key, hsm.UseMAC
	for range 3 {
		if _, err := bob.Use(t.Context(), u); err != nil {
			t.Error(err)
		}
	}
	if n := bob.calls.last.Load(); n != 0 || bob.calls.making {
		t.Errorf("%d calls in frames", n)
	}
}

// TestKeysAreDestroyedInFrames: a token key and a session key, with the answers of calls
// of their own; a key that is not there is not found.
func TestKeysAreDestroyedInFrames(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	bob := framed(t, loginAs(t, s.dial(pki.KindClient, "app"), hsm.RoleCryptoUser, "bob"))
	for _, token := range []bool{true, false} {
		ref := create(t, bob, hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 32, Token: token, Attributes: map[string]string{"label": "k"}}).Keys[0].Ref
		before := bob.calls.last.Load()
		m, err := bob.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
		if err != nil || (len(m.Bytes) > 0) != token || token && !m.Tombstone {
			t.Errorf("token %v: %v, %v", token, m.Object, err)
		}
		if bob.calls.last.Load() != before+1 {
			t.Errorf("token %v: it did not go in a frame", token)
		}
		if _, err := bob.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref + 1}); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
	}
}

// TestCallsFindTheirConnection: the first call of a session goes in the old way, the
// second has a connection made, and waits for none.
func TestCallsFindTheirConnection(t *testing.T) {
	_, r := newProbe(t, &probeModule{})
	s := r.(*session)
	once := func() {
		t.Helper()
		if _, err := s.Use(t.Context(), use(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if once(); s.calls.making {
		t.Error("a session that asks once has a connection made")
	}
	eventually(t.Context(), t, "a call goes in a frame", func() bool { once(); return s.calls.last.Load() > 0 })
	s.calls.line.fail(errClosed) // as when it breaks
	n := s.calls.last.Load()
	eventually(t.Context(), t, "there is another connection", func() bool { once(); return s.calls.last.Load() > n })
}

// TestCallsOfAnHSMThatIsAway: the error is that of a call of its own, and where a
// connection for calls cannot be made none is missed.
func TestCallsOfAnHSMThatIsAway(t *testing.T) {
	s, r := newProbe(t, &probeModule{})
	dial := r.(*session).replica.dialer
	r.(*session).replica.dialer = func(context.Context, string) (net.Conn, error) { return nil, errors.New("no more sockets") }
	for range 3 {
		if _, err := r.Use(t.Context(), use(nil)); err != nil {
			t.Error(err)
		}
	}
	eventually(t.Context(), t, "one was tried", func() bool {
		c := &r.(*session).calls
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.making && !c.after.IsZero()
	})
	r.(*session).replica.dialer = dial
	remote := framed(t, r)
	s.server.Stop()
	eventually(t.Context(), t, "the session is lost", func() bool {
		_, err := remote.Use(t.Context(), use([]byte("x")))
		if errors.Is(err, context.Canceled) {
			t.Fatalf("%v, of a call that nobody broke off", err)
		}
		return errors.Is(err, hsm.ErrUnavailable)
	})
}

// raw is a connection for calls, made by hand.
func raw(t *testing.T, s *site, name string) (net.Conn, *frames) {
	t.Helper()
	cfg := s.config(pki.KindClient, name)
	cfg.NextProtos = []string{pki.CallsProtocol}
	return rawWith(t, s, cfg)
}

func rawWith(t *testing.T, s *site, cfg *tls.Config) (net.Conn, *frames) {
	t.Helper()
	conn, err := tls.Dial("tcp", s.address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, &frames{from: conn, most: maxFrame}
}

// say sends a message in a frame.
func say(t *testing.T, conn net.Conn, m proto.Message) {
	t.Helper()
	b, err := proto.Marshal(m)
	if err == nil {
		_, err = conn.Write(appendFrame(nil, b))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestCallsNeedTheirSession: a token is good on connections of who has it, by
// certificate, while the session lasts.
func TestCallsNeedTheirSession(t *testing.T) {
	site, s, _ := newCallSite(t)
	own := s.replica.cfg.Clone()
	own.NextProtos = []string{pki.CallsProtocol}
	other := site.config(pki.KindClient, "somebody-else")
	other.NextProtos = own.NextProtos
	again, _, err := newPair(t, site, s)
	if err != nil {
		t.Fatal(err)
	}
	token := []byte(s.replica.token)
	for name, c := range map[string]struct {
		cfg   *tls.Config
		token []byte
	}{
		"another caller": {other, token}, "the same name, another certificate": {again, token}, "another token": {own, bytes.Repeat([]byte{1}, tokenSize)},
	} {
		conn, in := rawWith(t, site, c.cfg)
		say(t, conn, &pb.CallsHello{Session: c.token})
		frame, err := in.next()
		welcome := &pb.CallsWelcome{}
		if err == nil {
			err = proto.Unmarshal(frame, welcome)
		}
		if err != nil || welcome.GetFailure() == nil || !errors.Is(fromFailure(welcome.GetFailure()), hsm.ErrSession) {
			t.Errorf("%s: %v, %v; want ErrSession", name, welcome, err)
		}
	}
	for i := range maxLines {
		conn, _, _, err := s.replica.dialCalls(t.Context(), s.replica.token)
		if err == nil {
			defer conn.Close()
		}
		if want := i == maxLines-1; (err != nil) != want || want && !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("connection %d of %d: %v", i+2, maxLines, err)
		}
	}
	s.Close()
	if _, _, _, err := s.replica.dialCalls(t.Context(), s.replica.token); !errors.Is(err, hsm.ErrSession) {
		t.Errorf("after the session: %v, want ErrSession", err)
	}
}

// newPair is another certificate of the caller.
func newPair(t *testing.T, site *site, s *session) (cfg *tls.Config, id pki.Identity, err error) {
	t.Helper()
	id, err = pki.PeerIdentity(tls.ConnectionState{PeerCertificates: []*x509.Certificate{s.replica.cfg.Certificates[0].Leaf}})
	if err != nil {
		return nil, id, err
	}
	cfg = site.config(id.Kind, id.Name)
	cfg.NextProtos = []string{pki.CallsProtocol}
	return cfg, id, nil
}

// TestCallsEndWithTheConnection: a caller who is put out loses the connections for
// calls too, with what is under way on them.
func TestCallsEndWithTheConnection(t *testing.T) {
	c := &calls{}
	site, s, asked := newCallSite(t, WithObserver(c.observe))
	done := make(chan error, 1)
	go func() {
		_, err := s.Use(t.Context(), slowUse())
		done <- err
	}()
	<-asked
	if n := site.server.End(func(id pki.Identity, _ time.Time) bool { return id.Kind == pki.KindClient }); n != 2 {
		t.Errorf("%d connections were ended, want gRPC's and that for calls", n)
	}
	if err := <-done; !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	eventually(t.Context(), t, "the HSM stops", func() bool { return c.count("Use canceled") == 1 })
}

// TestCallsOfAHostileCaller: refused, each by itself or the connection, and the HSM
// goes on.
func TestCallsOfAHostileCaller(t *testing.T) {
	site, s, asked := newCallSite(t)
	own := s.replica.cfg.Clone()
	own.NextProtos = []string{pki.CallsProtocol}
	hmac := func(id uint64, word string) *pb.Call {
		return &pb.Call{Id: id, Within: -5, What: &pb.Call_Use{Use: toUse(use([]byte(word)))}}
	}
	begin := func(calls ...*pb.Call) (net.Conn, *frames) {
		conn, in := rawWith(t, site, own)
		say(t, conn, &pb.CallsHello{Session: []byte(s.replica.token)})
		if frame, err := in.next(); err != nil || len(frame) > 0 {
			t.Fatalf("%q, %v", frame, err)
		}
		say(t, conn, &pb.CallsRequest{Calls: calls, Gone: []uint64{5, 6}})
		return conn, in
	}
	for name, call := range map[string]*pb.Call{
		"nothing": {}, "no use": {What: &pb.Call_Use{}}, "no create": {What: &pb.Call_Create{}}, "no prepare": {What: &pb.Call_Prepare{}},
		"another change": {What: &pb.Call_Destroy{Destroy: &pb.ChangeRequest{Kind: string(hsm.ChangeUserDelete), User: "bob"}}},
		"short op":       {What: &pb.Call_Commit{Commit: &pb.OpRequest{Op: []byte{1}}}},
	} {
		conn, in := begin(call)
		frame, err := in.next()
		reply := &pb.CallsReply{}
		if err == nil {
			err = proto.Unmarshal(frame, reply)
		}
		conn.Close()
		if name == "no use" && err == nil {
			continue // the probe does not mind
		}
		if err != nil || len(reply.GetAnswers()) != 1 || !errors.Is(fromFailure(reply.GetAnswers()[0].GetFailure()), hsm.ErrInvalid) {
			t.Errorf("%s: %v, %v; want ErrInvalid", name, reply, err)
		}
	}
	_, twice := begin(hmac(1, "wait"), hmac(1, "wait"))
	<-asked
	_, many := begin(make([]*pb.Call, maxCalls+1)...)
	huge, of := begin()
	huge.Write([]byte{0xff, 0xff, 0xff, 0xff, 1})
	garbage, out := begin()
	garbage.Write(appendFrame(nil, []byte("no calls")))
	for name, in := range map[string]*frames{"one id twice": twice, "too many": many, "a frame of 4 GiB": of, "garbage": out} {
		var err error
		for err == nil { // until the HSM has ended it
			_, err = in.next()
		}
		if errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
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

// TestUnreadAnswersTakeRoom: a caller who asks and does not read is not asked for more,
// so that the HSM does not keep answers without end; and it keeps nobody else waiting.
func TestUnreadAnswersTakeRoom(t *testing.T) {
	site, s, _ := newCallSite(t)
	own := s.replica.cfg.Clone()
	own.NextProtos = []string{pki.CallsProtocol}
	conn, in := rawWith(t, site, own)
	say(t, conn, &pb.CallsHello{Session: []byte(s.replica.token)})
	if frame, err := in.next(); err != nil || len(frame) > 0 {
		t.Fatalf("%q, %v", frame, err)
	}
	const each, most = 16 << 10, 256 << 20 // far more than the room and all buffers on the way
	u := toUse(use(bytes.Repeat([]byte{1}, each)))
	u.Params.Mechanism = "rsa-pss" // not done where the connection is read
	var err error
	for id := uint64(1); id < most/each && err == nil; id++ {
		b, bad := proto.Marshal(&pb.CallsRequest{Calls: []*pb.Call{{Id: id, What: &pb.Call_Use{Use: u}}}})
		if bad != nil {
			t.Fatal(bad)
		}
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, err = conn.Write(appendFrame(nil, b))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d MiB were taken, none of the answers read: %v", most>>20, err)
	}
	if got, err := open(t, site.dial(pki.KindClient, "other")).Use(t.Context(), use([]byte("x"))); err != nil || string(got) != "x" {
		t.Errorf("another caller: %q, %v", got, err)
	}
	conn.Close()
}

// TestHalfAHello: who names no session does not keep a connection, nor the server
// from stopping.
func TestHalfAHello(t *testing.T) {
	site := newSite(t)
	for name, b := range map[string][]byte{
		"too long": {0, 0, 0xff, 0xff}, "no token": appendFrame(nil, nil), "garbage": appendFrame(nil, []byte{0xff}), "a request": appendFrame(nil, []byte{10, 0}),
	} {
		conn, in := raw(t, site, "app")
		conn.Write(b)
		if frame, err := in.next(); err == nil {
			t.Errorf("%s: %q", name, frame)
		}
	}
	silent, in := raw(t, site, "app")
	silent.Write([]byte{0, 0})
	eventually(t.Context(), t, "it is there", func() bool {
		site.server.lines.mu.Lock()
		defer site.server.lines.mu.Unlock()
		return len(site.server.lines.all) == 1
	})
	site.server.Stop()
	if _, err := in.next(); err == nil {
		t.Error("a connection that outlives the server")
	}
}

// TestCallsAreAliveWhileTheyTakeLong: an empty frame is answered by one.
func TestCallsAreAliveWhileTheyTakeLong(t *testing.T) {
	_, s, asked := newCallSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Use(ctx, slowUse())
		done <- err
	}()
	<-asked
	l := s.calls.line
	l.mu.Lock()
	before := l.reads
	l.ping = true
	l.sendAside()
	l.mu.Unlock()
	eventually(t.Context(), t, "the HSM shows that it is alive", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.reads > before
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// hostileHSM is the other side of a line: it says what it is told to, whatever it is
// asked.
func hostileHSM(t *testing.T, says ...[]byte) *line {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { far.Close() })
	go io.Copy(io.Discard, far)
	go func() {
		for _, b := range says {
			far.Write(b)
		}
		far.Close()
	}()
	return newLine(near, &frames{from: near})
}

// TestCallsOfAHostileHSM: answers to what nobody asked are nobody's, and what is no
// frame of answers ends the connection.
func TestCallsOfAHostileHSM(t *testing.T) {
	forged, err := proto.Marshal(&pb.CallsReply{Answers: []*pb.Answer{{}, {Id: 99, Use: &pb.UseReply{Data: []byte("forged")}}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string][][]byte{
		"forged answers": {appendFrame(nil, forged), appendFrame(nil, forged)}, "4 GiB": {{0xff, 0xff, 0xff, 0xff}},
		"garbage": {appendFrame(nil, []byte("no answers"))}, "half a frame": {{0, 0, 0, 9, 1}}, "nothing": nil,
	} {
		l := hostileHSM(t, says...)
		w := l.ask(1, []byte{8, 1})
		if w == nil { // it has ended already
			continue
		}
		if err := l.wait(t.Context(), w); err == nil || w.out != nil {
			t.Errorf("%s: %v, %v; want an error", name, w.out, err)
		}
		if !l.isOver() || l.ask(2, nil) != nil {
			t.Errorf("%s: the connection goes on", name)
		}
	}
}

// TestAReadIsBrokenOff: by the context of who reads, and then another reads on where
// it stopped, also within a frame.
func TestAReadIsBrokenOff(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far)
	l := newLine(near, &frames{from: near})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := l.ask(1, []byte{8, 1}), l.ask(2, []byte{8, 2})
	ended := make(chan error, 2)
	go func() { ended <- l.wait(ctx, first) }()
	eventually(t.Context(), t, "the first reads", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.reader == first
	})
	reply, err := proto.Marshal(&pb.CallsReply{Answers: []*pb.Answer{{Id: 1}, {Id: 2, Use: &pb.UseReply{Data: []byte("x")}}}})
	if err != nil {
		t.Fatal(err)
	}
	frame := appendFrame(nil, reply)
	if _, err := far.Write(frame[:7]); err != nil { // taken by the reader
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	go func() { ended <- l.wait(t.Context(), second) }()
	if _, err := far.Write(frame[7:]); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || string(second.out.GetUse().GetData()) != "x" {
		t.Errorf("the second: %v, %v", second.out, err)
	}
	if len(l.waiting) != 0 {
		t.Errorf("%d calls are still waited for", len(l.waiting))
	}
}

// FuzzFrames: whatever arrives, in whatever pieces, is read as the same frames, none
// larger than allowed, in memory that what arrived accounts for.
func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, []byte("one")), nil), 3)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, 1)
	f.Add([]byte{0, 0, 0, 9, 1, 2}, 5)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		whole, wholeErr := framesOf(t, b, len(b)+1)
		parts, partsErr := framesOf(t, b, max(1, piece%16))
		if diff := cmp.Diff(whole, parts); diff != "" || (wholeErr == io.EOF) != (partsErr == io.EOF) {
			t.Errorf("in pieces %v, at once %v:\n%s", partsErr, wholeErr, diff)
		}
		for _, frame := range whole {
			req, reply := &pb.CallsRequest{}, &pb.CallsReply{}
			if proto.Unmarshal(frame, req) == nil && len(req.Calls) > len(frame) || proto.Unmarshal(frame, reply) == nil && len(reply.Answers) > len(frame) {
				t.Errorf("%d calls of %d bytes", len(req.Calls), len(frame))
			}
		}
	})
}

// framesOf reads all frames from a reader that gives a few bytes at a time.
func framesOf(t *testing.T, b []byte, piece int) (all [][]byte, err error) {
	const most = 1 << 10
	in := &frames{from: &pieces{b, piece}, most: most}
	for {
		frame, err := in.next()
		if err != nil {
			return all, err
		}
		if len(frame) > most || len(in.rest) > 2*(most+frameHeader)+readBytes+2*len(b) {
			t.Fatalf("a frame of %d bytes, %d held", len(frame), len(in.rest))
		}
		all = append(all, bytes.Clone(frame))
	}
}

type pieces struct {
	b    []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.b)
	p.b = p.b[n:]
	return n, nil
}

// TestSettledBeforeAnAnswerLeaves: what WithSettle sets is called after a call is done
// and before its caller hears of it, whether the call came in a frame or was one of its
// own, alone or among many.
func TestSettledBeforeAnAnswerLeaves(t *testing.T) {
	var done, settled atomic.Int64
	m := &probeModule{
		use:  func(context.Context, hsm.Use) ([]byte, error) { return fmt.Append(nil, done.Add(1)), nil },
		info: func(context.Context) (hsm.Info, error) { done.Add(1); return hsm.Info{}, nil },
	}
	_, r := newProbe(t, m, WithSettle(func() { settled.Store(done.Load()) }))
	s := framed(t, r)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 50 {
				b, err := s.Use(t.Context(), use(nil))
				if n, bad := strconv.ParseInt(string(b), 10, 64); err != nil || bad != nil || settled.Load() < n {
					t.Errorf("%v %v: answer of call %q, settled up to %d", err, bad, b, settled.Load())
				}
			}
		})
	}
	all.Wait()
	if _, err := s.Info(t.Context()); err != nil || settled.Load() != done.Load() {
		t.Errorf("%v: %d calls, settled up to %d", err, done.Load(), settled.Load())
	}
}
