package pkcs11

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// serve serves the daemon at a socket.
func (w *world) serve(maxConns int) (path string) {
	w.t.Helper()
	l, err := listenAt(filepath.Join(w.t.TempDir(), "s"), 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.d.Server(maxConns).Serve(ctx, l) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			w.t.Error(err)
		}
	})
	return l.Addr().String()
}

// process is an application that speaks the wire by hand.
type process struct {
	net.Conn
	code uint32
}

func start(path string) (*process, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	p := &process{Conn: c}
	if _, err := c.Write([]byte{1}); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return nil, err
	}
	const handshake = "PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"
	_, err = p.call(rpc.Initialize, array([]byte(handshake)), []byte{0}, array([]byte{0}))
	return p, err
}

func array(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{1}, uint32(len(b))), b...)
}

func ulong(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// call sends a request and returns the values of the answer.
func (p *process) call(c rpc.Call, values ...[]byte) ([]byte, error) {
	p.code++
	if err := p.send(c, values...); err != nil {
		return nil, err
	}
	var head [12]byte
	if _, err := io.ReadFull(p, head[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[8:]))
	if _, err := io.ReadFull(p, body); err != nil {
		return nil, err
	}
	at := 8 + binary.BigEndian.Uint32(body[4:])
	if binary.BigEndian.Uint32(body) == 0 {
		return nil, ck.RV(binary.BigEndian.Uint64(body[at:]))
	}
	return body[at:], nil
}

func (p *process) send(c rpc.Call, values ...[]byte) error {
	s, _ := rpc.SignatureOf(c)
	body := binary.BigEndian.AppendUint32(nil, uint32(c))
	body = append(binary.BigEndian.AppendUint32(body, uint32(len(s.Request))), s.Request...)
	for _, v := range values {
		body = append(body, v...)
	}
	head := binary.BigEndian.AppendUint32(nil, p.code+1)
	head = binary.BigEndian.AppendUint32(head, 0)
	_, err := p.Write(append(binary.BigEndian.AppendUint32(head, uint32(len(body))), body...))
	return err
}

// work logs in, makes a session key and uses it.
func (p *process) work() error {
	out, err := p.call(rpc.OpenSession, ulong(0), ulong(6))
	if err != nil {
		return err
	}
	s := out[:8]
	if _, err := p.call(rpc.Login, s, ulong(1), array([]byte(bobPIN))); err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	none := []byte{0xff, 0xff, 0xff, 0xff}
	template := append([]byte{0, 0, 0, 1, 0, 0, 1, 0x61, 1, 0, 0, 0, 8}, ulong(16)...)
	key, err := p.call(rpc.GenerateKey, s, []byte{0, 0, 0x10, 0x80}, none, template)
	if err != nil {
		return fmt.Errorf("generate: %w", err)
	}
	if _, err := p.call(rpc.EncryptInit, s, []byte{0, 0, 0x10, 0x81}, none, key); err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	_, err = p.call(rpc.Encrypt, s, array(make([]byte, 16)), []byte{0, 0, 0, 16})
	return err
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after a minute: %s", what)
		}
	}
}

// A thousand applications at once; then all are killed, and nothing of them is left: no
// session, no login, no session object on an HSM.
func TestThousandApplications(t *testing.T) {
	w := newWorld(t, 2, onlyOne)
	path := w.serve(1000)
	const n = 1000
	processes := make([]*process, n)
	var all sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		all.Go(func() {
			p, err := start(path)
			if err == nil {
				processes[i] = p
				err = p.work()
			}
			if err != nil {
				errs <- err
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	if st := w.d.Stats(); st.Connected.Load() != n || st.Sessions.Load() != n || st.Logins.Load() != n {
		t.Errorf("%d connected, %d sessions, %d logins", st.Connected.Load(), st.Sessions.Load(), st.Logins.Load())
	}
	if one, err := start(path); err == nil {
		one.Close()
		t.Error("one more than --max-applications is served")
	}
	watcher := w.app()
	if got := watcher.find(watcher.session(bobPIN)); len(got) != 0 {
		t.Errorf("another application of the same user finds %d session objects", len(got))
	}
	for _, p := range processes {
		p.Close() // as the kernel does for a process that is killed
	}
	st := w.d.Stats()
	eventually(t, "no application, one session", func() bool { return st.Connected.Load() == 0 && st.Sessions.Load() == 1 })
	watcher.Close()
	eventually(t, "no session on an HSM", func() bool { return w.sessionsOfUsers() == 0 })
}

// sessionsOfUsers counts the sessions on all HSMs.
func (w *world) sessionsOfUsers() (n uint64) {
	for _, h := range w.hsms {
		s, err := h.Module(hsmPrincipal).Session(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		info, err := s.Info(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		n += info.Sessions - 1
		s.Close()
	}
	return n
}

// What is malformed ends its own connection, and no other.
func TestMalformedEndsOneApplication(t *testing.T) {
	w := newWorld(t, 1, onlyOne)
	path := w.serve(0)
	good, err := start(path)
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	for name, bytes := range map[string][]byte{
		"a frame of 4 GiB":      {0, 0, 0, 9, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"no frame at all":       []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"a call with less":      {0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 13, 0, 0, 0, 1, 'u'},
		"half a frame, then no": {0, 0, 0, 9, 0, 0},
	} {
		bad, err := start(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bad.Write(bytes); err != nil {
			t.Fatal(err)
		}
		bad.Conn.(*net.UnixConn).CloseWrite()
		if got, _ := io.ReadAll(bad); len(got) != 0 {
			t.Errorf("%s: answered %x", name, got)
		}
		bad.Close()
	}
	eventually(t, "one application", func() bool { return w.d.Stats().Connected.Load() == 1 })
	if err := good.work(); err != nil {
		t.Error(err)
	}
}

// Calls before login, handles of nobody, in every call that takes a session.
func TestCallsOutOfPlace(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	for call := range sessionHandlers {
		if _, err := a.App.Call(t.Context(), call, argsFor(call, 99)); err != ck.SessionHandleInvalid {
			t.Errorf("%s without a session: %v", call, err)
		}
	}
	s := a.open(ck.SessionRW)
	for _, call := range []rpc.Call{rpc.CreateObject, rpc.GenerateKey, rpc.DestroyObject, rpc.SignInit, rpc.EncryptInit, rpc.WrapKey, rpc.DeriveKey, rpc.Sign, rpc.DigestFinal, rpc.FindObjects} {
		_, err := a.App.Call(t.Context(), call, argsFor(call, s))
		if err == nil || err == ck.GeneralError || err == ck.DeviceError {
			t.Errorf("%s before login: %v", call, err)
		}
	}
}

// argsFor makes the emptiest arguments that fit a call.
func argsFor(call rpc.Call, session uint64) rpc.Args {
	args := rpc.Args{}
	sig, _ := rpc.SignatureOf(call)
	for s := sig.Request; s != ""; {
		n := 1
		if s[0] == 'a' || s[0] == 'f' {
			n = 2
		}
		args = append(args, map[string]any{"u": uint64(0), "ay": []byte(nil), "fy": rpc.Room{}, "fu": rpc.Room{N: 1}, "aA": []rpc.Attribute{}, "fA": []rpc.AttributeRoom{}, "M": rpc.Mechanism{Type: ck.AESKeyGen}}[s[:n]])
		s = s[n:]
	}
	args[0] = session
	return args
}

// FuzzCalls gives whole calls to an application that is logged in: whatever stands in
// them, it answers and does not panic.
func FuzzCalls(f *testing.F) {
	f.Add(uint32(rpc.SignInit), uint64(1), []byte{1, 2}, uint32(ck.RSAPKCS))
	f.Add(uint32(rpc.GenerateKey), uint64(1), []byte{0x30, 0}, uint32(ck.AESKeyGen))
	f.Add(uint32(rpc.CreateObject), uint64(3), []byte("x"), uint32(1))
	w := newWorld(f, 1, onlyOne)
	a := w.app()
	s := a.session(bobPIN)
	key := a.known(s)
	f.Fuzz(func(t *testing.T, call uint32, n uint64, b []byte, m uint32) {
		sig, ok := rpc.SignatureOf(rpc.Call(call))
		if !ok || sig.Request == "" || sig.Request[0] != 'u' || rpc.Call(call) == rpc.CloseAllSessions || rpc.Call(call) == rpc.CloseSession || rpc.Call(call) == rpc.Logout {
			return
		}
		args := argsFor(rpc.Call(call), s)
		for i := 1; i < len(args); i++ {
			switch args[i].(type) {
			case uint64:
				args[i] = key + n%4 - 1
			case []byte:
				args[i] = b
			case rpc.Room:
				args[i] = rpc.Room{Query: n%3 == 0, N: uint32(n % 4096)}
			case rpc.Mechanism:
				args[i] = rpc.Mechanism{Type: ck.Mech(m), Has: n%2 == 0, Nums: []uint64{n, n, n}[:n%4], Bufs: [][]byte{b, b}[:n%3]}
			case []rpc.Attribute:
				args[i] = []rpc.Attribute{{Type: ck.Class, Valid: true, Num: n % 6}, {Type: ck.KeyType, Valid: true, Num: uint64(m)}, {Type: ck.Value, Valid: true, Bytes: b}, {Type: ck.Attr(m), Valid: true, Bytes: b, Num: n}}
			}
		}
		_, err := a.App.Call(t.Context(), rpc.Call(call), args)
		if err == ck.GeneralError {
			t.Errorf("%s %v: %v\n%s", rpc.Call(call), args, err, w.log)
		}
	})
}

func TestOnlyUsersAreAdmitted(t *testing.T) {
	admit := OnlyUsers(100, 200)
	for uid, want := range map[int]bool{0: true, 100: true, 200: true, 101: false} {
		if err := admit(Peer{UID: uid}); (err == nil) != want {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	w := newWorld(t, 1, onlyOne)
	w.d.mayConnect = func(p Peer) error {
		if p.UID != os.Getuid() || p.PID != os.Getpid() || p.Program == "" {
			t.Errorf("peer %+v; this is process %d of user %d", p, os.Getpid(), os.Getuid())
		}
		return errors.New("not today")
	}
	if p, err := start(w.serve(0)); err == nil {
		p.Close()
		t.Error("admitted")
	}
}

func TestSocketIsItsOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, mode := range []os.FileMode{0o600, 0o666} {
		l, err := listenAt(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%v %v, want %v", st, err, mode)
		}
		if other, err := listenAt(path, mode); err == nil {
			other.Close()
			t.Error("a second daemon took the socket of one that lives")
		}
		l.SetUnlinkOnClose(false)
		l.Close() // as one that died: the socket stays
	}
	if err := os.WriteFile(path+"2", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenAt(path+"2", 0o600); err == nil {
		l.Close()
		t.Error("a file was replaced by a socket")
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, 1, onlyOne)
	a := w.app()
	s := a.session(bobPIN)
	a.want(ck.OperationNotInitialized, rpc.Login, a.open(0), ck.UserContextSpecific, []byte("x"))
	a.want(ck.ObjectHandleInvalid, rpc.DestroyObject, s, uint64(5))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	address, err := w.d.serveMetrics(ctx, RunOptions{Metrics: ":0", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"hsmbackup_client_logins_total 1", "hsmbackup_client_sessions 2", "hsmbackup_client_call_errors_total 2"} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
}
