package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// fakeApp answers a few calls; C_GenerateRandom waits to be let go.
type fakeApp struct {
	form   Form
	hold   chan struct{}
	mu     sync.Mutex
	closed int

	waiting int // calls of C_SeedRandom so far

	signs bool   // it digests, and signs with no key
	calls []Call // of that
}

func (a *fakeApp) Call(ctx context.Context, call Call, args Args) ([]any, error) {
	switch call {
	case GetSlotList:
		return []any{[]uint64{uint64(a.form)}}, nil
	case GenerateRandom:
		<-a.hold
		return []any{[]byte{1}}, nil
	case SeedRandom:
		a.mu.Lock()
		a.waiting++
		a.mu.Unlock()
		<-a.hold
		return nil, nil
	case GetSlotInfo:
		return nil, errors.New("something else")
	case DigestInit, Digest, SignInit, Sign:
		if a.signs {
			return a.operate(call)
		}
	}
	return nil, ck.SessionHandleInvalid
}

func (a *fakeApp) operate(call Call) ([]any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, call)
	switch call {
	case DigestInit:
		return nil, nil
	case Digest:
		return []any{[]byte{7}}, nil
	}
	return nil, ck.KeyHandleInvalid
}

func (a *fakeApp) Close() { a.mu.Lock(); a.closed++; a.mu.Unlock() }

func (a *fakeApp) closes() int { a.mu.Lock(); defer a.mu.Unlock(); return a.closed }

type world struct {
	server *Server
	path   string
	apps   chan *fakeApp
	stop   context.CancelFunc
	ended  chan error
	served chan error
}

func newWorld(t *testing.T, maxConns int) *world {
	t.Helper()
	w := &world{path: filepath.Join(t.TempDir(), "s"), apps: make(chan *fakeApp, 64), ended: make(chan error, 64), served: make(chan error, 1)}
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	w.server = &Server{MaxConns: maxConns, Ended: func(_ App, err error) { w.ended <- err }}
	w.server.Open = func(_ net.Conn, form Form, _ bool) (App, error) {
		a := &fakeApp{form: form, hold: make(chan struct{})}
		w.apps <- a
		return a, nil
	}
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	go func() { w.served <- w.server.Serve(ctx, l) }()
	t.Cleanup(func() { stop(); <-w.served })
	return w
}

// peer is a client by hand.
type peer struct {
	t *testing.T
	net.Conn
}

func (w *world) dial(t *testing.T, offer, want byte) peer {
	t.Helper()
	c, err := net.Dial("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	p := peer{t, c}
	p.send([]byte{offer})
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != want {
		t.Fatalf("offered %d, answered %d, %v; want %d", offer, b[0], err, want)
	}
	return p
}

func (p peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// request is a whole frame.
func request(code uint32, call Call, values []byte) []byte {
	w := &writer{}
	w.begin()
	w.u32(uint32(call))
	w.bytes([]byte(signatures[call].Request))
	w.b = append(w.b, values...)
	return w.end(code)
}

// answer reads one frame: its code, call and values.
func (p peer) answer() (code uint32, call Call, values []byte) {
	p.t.Helper()
	var h [headerSize]byte
	if _, err := io.ReadFull(p, h[:]); err != nil {
		p.t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(h[8:]))
	if _, err := io.ReadFull(p, body); err != nil {
		p.t.Fatal(err)
	}
	r := &reader{b: body}
	call = Call(r.u32())
	r.bytes()
	return codeOf(h[:]), call, r.b
}

func (p peer) initialize() {
	p.t.Helper()
	p.send(request(0x10, Initialize, unhex(p.t, requests[0].body)))
	if code, call, _ := p.answer(); code != 0x10 || call != Initialize {
		p.t.Fatalf("C_Initialize: %d %s", code, call)
	}
}

func (p peer) wantError(code uint32, rv ck.RV) {
	p.t.Helper()
	c, call, values := p.answer()
	if c != code || call != callError || !bytes.Equal(values, binary.BigEndian.AppendUint64(nil, uint64(rv))) {
		p.t.Errorf("code %d, call %d, %x; want the error %s", c, call, values, rv)
	}
}

func (p peer) wantEnd() {
	p.t.Helper()
	if n, err := io.Copy(io.Discard, p); err != nil || n != 0 {
		p.t.Errorf("%d more bytes, %v; want the end", n, err)
	}
}

func TestFormFollowsFromTheOfferedByte(t *testing.T) {
	w := newWorld(t, 0)
	for _, v := range []struct {
		offer, answer byte
		form          Form
	}{{0, 0, FormOld}, {1, 1, FormOld}, {2, 1, FormNew}, {3, 1, FormNew}, {moduleByte, moduleByte, FormModule}} {
		p := w.dial(t, v.offer, v.answer)
		p.initialize()
		p.send(request(0x11, GetSlotList, []byte{0, 0, 0, 0, 9}))
		if _, _, values := p.answer(); values[len(values)-1] != byte(v.form) {
			t.Errorf("offered %d: form %d, want %d", v.offer, values[len(values)-1], v.form)
		}
	}
}

func TestAnswersComeInAnyOrder(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, 1, 1)
	p.initialize()
	app := <-w.apps
	p.send(request(0x11, GenerateRandom, make([]byte, 12)))
	p.send(request(0x12, GetSlotList, make([]byte, 5)))
	if code, _, _ := p.answer(); code != 0x12 {
		t.Errorf("code %x came first, want that of the call that does not wait", code)
	}
	close(app.hold)
	if code, _, _ := p.answer(); code != 0x11 {
		t.Errorf("code %x, want 11", code)
	}
}

func TestCallsOutOfPlace(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, 1, 1)
	p.send(request(0x10, GetSlotList, make([]byte, 5)))
	p.wantError(0x10, ck.CryptokiNotInitialized)
	p.send(request(0x11, Initialize, unhex(t, "01 00000001 41 00 01 00000001 00")))
	p.wantError(0x11, ck.GeneralError)
	p.initialize()
	p.send(request(0x12, Initialize, unhex(t, requests[0].body)))
	p.wantError(0x12, ck.CryptokiAlreadyInitialized)
	p.send(request(0x13, Call(200), nil))
	p.wantError(0x13, ck.FunctionNotSupported)
	p.send(request(0x14, Call(70), nil)) // a message call
	p.wantError(0x14, ck.FunctionNotSupported)
	p.send(request(0x15, GetSlotInfo, make([]byte, 8)))
	p.wantError(0x15, ck.GeneralError)
}

// C_Finalize ends the application, not the end of the stream, which a forked child
// keeps open.
func TestFinalizeEndsTheApplication(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, 1, 1)
	p.initialize()
	p.send(request(0x11, Finalize, nil))
	if code, call, _ := p.answer(); code != 0x11 || call != Finalize {
		t.Errorf("%d %s", code, call)
	}
	p.wantEnd()
	if err := <-w.ended; err != nil {
		t.Error(err)
	}
	if n := (<-w.apps).closes(); n == 0 {
		t.Error("the application was not closed")
	}
}

// halfOf is the body of a request of a session, with so many zeros after it.
func halfOf(call Call, session uint64, zeros int) []byte {
	return request(1, call, append(binary.BigEndian.AppendUint64(nil, session), make([]byte, zeros)...))[headerSize:]
}

// hmacInit is the body of C_SignInit: a mechanism in the module's form, and a key.
func hmacInit(session uint64) []byte {
	return halfOf(SignInit, session, 4+1+8)
}

func pairOf(session uint64, begin, do []byte) []byte {
	w := &writer{b: binary.BigEndian.AppendUint64(nil, session)}
	for _, b := range [][]byte{begin, do} {
		w.b = append(w.b, 1)
		w.bytes(b)
	}
	return w.b
}

// TestAPairIsAnsweredAsItsSecondCall, or with the error of the first, and then the second is
// not tried.
func TestAPairIsAnsweredAsItsSecondCall(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, moduleByte, moduleByte)
	p.initialize()
	app := <-w.apps
	app.signs = true
	digest := request(1, DigestInit, unhex(t, "0000000000000001 00000250 00"))[headerSize:]
	do := halfOf(Digest, 1, 9)
	p.send(request(0x10, Pair, pairOf(1, digest, do)))
	if code, call, values := p.answer(); code != 0x10 || call != Digest || !bytes.Equal(values, unhex(t, "01 00000001 07")) {
		t.Errorf("%x %s %x", code, call, values)
	}
	sign := request(1, SignInit, unhex(t, "0000000000000001 00000251 00 0000000000000009"))[headerSize:]
	p.send(request(0x11, Pair, pairOf(1, sign, halfOf(Sign, 1, 9))))
	p.wantError(0x11, ck.KeyHandleInvalid)
	app.mu.Lock()
	defer app.mu.Unlock()
	if want := []Call{DigestInit, Digest, SignInit}; !slices.Equal(app.calls, want) {
		t.Errorf("calls %v, want %v", app.calls, want)
	}
}

func TestMalformedEndsTheConnection(t *testing.T) {
	for name, b := range map[string][]byte{
		"code 0":              append(make([]byte, 11), 8),
		"a body of 4 GiB":     unhex(t, "00000010 00000000 ffffffff 00000001"),
		"options of 4 GiB":    unhex(t, "00000010 ffffffff 00000010 00000001"),
		"a wrong signature":   unhex(t, "00000010 00000000 00000009 00000003 00000001 75"),
		"a body too short":    request(0x10, OpenSession, make([]byte, 15)),
		"a body too long":     request(0x10, CloseSession, make([]byte, 9)),
		"no call":             unhex(t, "00000010 00000000 00000002 0000"),
		"signature of 4 GiB":  unhex(t, "00000010 00000000 00000009 00000003 fffffffe 75"),
		"an end within":       request(0x10, OpenSession, make([]byte, 16))[:20],
		"an end in a header":  {0, 0, 0},
		"a pair of nothing":   request(0x10, Pair, pairOf(1, nil, nil)),
		"a pair of strangers": request(0x10, Pair, pairOf(1, hmacInit(1), halfOf(Verify, 1, 10))),
		"a pair in a pair":    request(0x10, Pair, pairOf(1, hmacInit(1), halfOf(Pair, 1, 10))),
		"a pair upside down":  request(0x10, Pair, pairOf(1, halfOf(Sign, 1, 9), hmacInit(1))),
		"two sessions":        request(0x10, Pair, pairOf(1, hmacInit(1), halfOf(Sign, 2, 9))),
		"not its session":     request(0x10, Pair, pairOf(2, hmacInit(1), halfOf(Sign, 1, 9))),
		"a bad half":          request(0x10, Pair, pairOf(1, hmacInit(1), halfOf(Sign, 1, 8))),
		"an error as request": unhex(t, "00000010 00000000 00000009 00000001 00000001 75"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 0)
			p := w.dial(t, moduleByte, moduleByte)
			p.initialize()
			p.send(b)
			p.Conn.(*net.UnixConn).CloseWrite()
			p.wantEnd()
			if err := <-w.ended; err == nil {
				t.Error("ended well")
			}
			if n := (<-w.apps).closes(); n != 1 {
				t.Errorf("the application was closed %d times", n)
			}
		})
	}
}

// Requests that wait for another keep no more memory than they may: further ones wait in
// the socket.
func TestRequestsUnderWayAreBounded(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, moduleByte, moduleByte)
	p.initialize()
	app := <-w.apps
	const size = 900 << 10
	values := append(binary.BigEndian.AppendUint64(nil, 1), 1)
	values = append(binary.BigEndian.AppendUint32(values, size), make([]byte, size)...)
	seed := request(0x20, SeedRandom, values)
	sent := make(chan error, 1)
	go func() {
		var err error
		for range 2 * connRoom / size {
			if err == nil {
				_, err = p.Write(seed)
			}
		}
		sent <- err
	}()
	served := func() int { app.mu.Lock(); defer app.mu.Unlock(); return app.waiting }
	for deadline := time.Now().Add(time.Minute); served() < connRoom/len(seed) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := served(); got != connRoom/len(seed) {
		t.Errorf("%d requests are under way, want %d", got, connRoom/len(seed))
	}
	select {
	case err := <-sent:
		t.Errorf("all were taken in: %v", err)
	default:
	}
	close(app.hold)
	for range 2 * connRoom / size {
		if code, _, _ := p.answer(); code != 0x20 {
			t.Fatalf("code %x", code)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(time.Minute); w.server.room.left() != allRoom && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if left := w.server.room.left(); left != allRoom {
		t.Errorf("%d bytes of room are left of %d", left, allRoom)
	}
}

func (r *room) left() int { r.mu.Lock(); defer r.mu.Unlock(); return r.free }

func TestConnectionsAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	first := w.dial(t, 1, 1)
	first.initialize()
	c, err := net.Dial("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	c.Write([]byte{1})
	if n, _ := c.Read(make([]byte, 1)); n != 0 {
		t.Error("a second connection is served")
	}
	first.send(request(0x11, GetSlotList, make([]byte, 5)))
	if code, _, _ := first.answer(); code != 0x11 {
		t.Error("the first connection is not")
	}
}

// A connection that is handed over between two requests, or within one, is served on.
func TestHandOver(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, 2, 1)
	p.initialize()
	half := request(0x12, GetSlotList, make([]byte, 5))
	p.send(half[:7])
	idle := w.dial(t, 1, 1) // not initialized: nothing to keep
	handed := w.server.HandOver()
	if len(handed) != 1 || handed[0].State.Offered != 2 {
		t.Fatalf("%+v", handed)
	}
	idle.wantEnd()
	next := newWorld(t, 0)
	next.server.Resume(t.Context(), handed[0])
	p.send(half[7:])
	if code, _, values := p.answer(); code != 0x12 || values[len(values)-1] != byte(FormNew) {
		t.Errorf("code %x, %x", code, values)
	}
}

func TestStopWaitsForRequestsUnderWay(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, 1, 1)
	p.initialize()
	app := <-w.apps
	p.send(request(0x11, GenerateRandom, make([]byte, 12)))
	p.send(request(0x12, GetSlotList, make([]byte, 5)))
	p.answer() // so the first is under way
	w.stop()
	close(app.hold)
	if code, _, _ := p.answer(); code != 0x11 {
		t.Errorf("code %x, want 11", code)
	}
	p.wantEnd()
}

func FuzzFrames(f *testing.F) {
	for _, v := range requests {
		f.Add(request(0x10, v.call, unhex(f, v.body)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr := frames{from: bytes.NewReader(b)}
		c := &conn{ready: true}
		for {
			one, err := fr.next()
			if err != nil {
				return
			}
			_, _, _, _ = c.decode(one)
		}
	})
}
