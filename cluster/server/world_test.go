package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

const (
	testInterval   = 20 * time.Millisecond
	testIterations = 2
	patienceOfTest = time.Minute // of what must come; nothing is measured
	rootPassword   = "correct-horse"
	alicePassword  = "alice-is-here"
)

func secret(s string) hsm.Secret { return hsm.NewSecret([]byte(s)) }

func newSpec(dir string, hsms int) Spec {
	return Spec{
		Name: "east", Region: "region-one", Dir: dir, HSMs: hsms, MinCopies: 1, Version: "test",
		Iterations: testIterations, Admin: "root", Password: secret(rootPassword),
	}
}

func testLineage() (*hsm.Keyring, hsm.Secret) {
	keyring := hsm.NewKeyring()
	ca, err := pki.NewAuthority(keyring.Lineage())
	if err != nil {
		panic(err)
	}
	return keyring, ca.PEM()
}

// world is a cluster of servers in this process, over TLS on loopback.
type world struct {
	t       *testing.T
	profile *profile.Profile
	boxes   []*box
	log     *slog.Logger
}

// box is one HSM, up or down.
type box struct {
	w      *world
	folder string
	server *Server // nil: down
	cancel context.CancelFunc
	served chan error
	now    func() time.Time // its clock; nil: that of the machine
}

// newWorld lays out a cluster and starts all of its HSMs. They are connected.
func newWorld(t *testing.T, hsms int) *world {
	t.Helper()
	return startWorld(t, newSpec(filepath.Join(t.TempDir(), "east"), hsms))
}

func startWorld(t *testing.T, spec Spec) *world {
	t.Helper()
	p, err := Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, profile: p, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, h := range p.HSMs {
		w.boxes = append(w.boxes, &box{w: w, folder: p.Resolve(h.Dir)})
	}
	t.Cleanup(func() {
		for _, b := range w.boxes {
			b.stop()
		}
	})
	for _, b := range w.boxes {
		b.start()
	}
	w.connect()
	return w
}

func (b *box) options() Options {
	return Options{SyncInterval: testInterval, Log: b.w.log, Iterations: testIterations, SealEnvelope: sealNothing, Now: b.now}
}

func sealNothing(context.Context, hsm.Secret, []string, int) ([]byte, error) {
	return []byte("envelope"), nil
}

func (b *box) start() {
	b.w.t.Helper()
	s, err := Open(b.w.t.Context(), b.folder, b.options())
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.serve(s)
}

// serve returns once the HSM has caught up with its peers, or has ended.
func (b *box) serve(s *Server) {
	b.w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.server, b.cancel, b.served = s, cancel, make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		b.served <- s.Serve(ctx)
		close(ended)
	}()
	b.w.eventually("it does not catch up", func() bool {
		select {
		case <-ended:
			return true
		default:
			return s.sync.caughtUp()
		}
	})
}

// stop ends the HSM and returns what Serve did. It may be down already.
func (b *box) stop() error {
	if b.server == nil {
		return nil
	}
	b.cancel()
	err := errors.Join(<-b.served, b.server.Close())
	b.server = nil
	return err
}

func (b *box) id() hsm.HSMID { return b.server.config.ID }

func newLogger(to io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }

// dialWith connects as whoever a configuration says.
func (w *world) dialWith(b *box, cfg *tls.Config) hsm.Module {
	w.t.Helper()
	m, err := rpc.Dial(w.t.Context(), b.server.Address(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { m.Close() })
	return m
}

// dial connects with one of the cluster's identity files.
func (b *box) dial(identity string) hsm.Module {
	b.w.t.Helper()
	cred, err := pki.LoadIdentityFile(identity)
	if err != nil {
		b.w.t.Fatal(err)
	}
	cfg, err := cred.ClientConfig()
	if err != nil {
		b.w.t.Fatal(err)
	}
	return b.w.dialWith(b, cfg)
}

func (b *box) client() hsm.Module { return b.dial(b.w.profile.ClientPath()) }

// login logs a user in.
func (b *box) login(name, password string) hsm.Session {
	b.w.t.Helper()
	s, _, err := b.client().Login(b.w.t.Context(), hsm.RoleNone, name, secret(password))
	if err != nil {
		b.w.t.Fatal(err)
	}
	return s
}

func (b *box) root() hsm.Session  { return b.login("root", rootPassword) }
func (b *box) alice() hsm.Session { return b.login("alice", alicePassword) }

// appliance is a session with the appliance's certificate.
func (b *box) appliance() hsm.Session {
	b.w.t.Helper()
	s, err := b.dial(b.w.profile.AppliancePath()).Session(b.w.t.Context())
	if err != nil {
		b.w.t.Fatal(err)
	}
	return s
}

// self is the HSM's own session.
func (b *box) self() hsm.Session { return b.server.device.self }

func (b *box) info() hsm.Info {
	b.w.t.Helper()
	info, err := b.appliance().Info(b.w.t.Context())
	if err != nil {
		b.w.t.Fatal(err)
	}
	return info
}

// createAlice makes the crypto user alice on one HSM and waits until all that
// are up know her.
func (w *world) createAlice() {
	w.t.Helper()
	w.change(w.boxes[0].root(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "alice", Role: hsm.RoleCryptoUser, Password: secret(alicePassword)})
	w.converge()
}

func (w *world) change(s hsm.Session, c hsm.Change) {
	w.t.Helper()
	if _, err := s.Change(w.t.Context(), c); err != nil {
		w.t.Fatalf("%s: %v", c.Kind, err)
	}
}

func newOp() (op hsm.OpID) {
	k := hsm.NewKeyRef()
	for i := range 8 {
		op[i] = byte(k >> (8 * i))
	}
	return op
}

func aesRequest(label string) hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 16, Attributes: map[string]string{"label": label}}
}

// createKey makes a token key on one HSM alone.
func (w *world) createKey(s hsm.Session, label string) hsm.KeyRef {
	w.t.Helper()
	op := newOp()
	made, err := s.Create(w.t.Context(), op, aesRequest(label))
	if err == nil {
		err = s.Commit(w.t.Context(), op)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return made.Keys[0].Ref
}

// up returns the HSMs that serve.
func (w *world) up() (up []*box) {
	for _, b := range w.boxes {
		if b.server != nil {
			up = append(up, b)
		}
	}
	return up
}

// converge waits until all HSMs that are up hold the same.
func (w *world) converge() {
	w.t.Helper()
	w.eventually("the HSMs do not converge", func() bool {
		var roots []hsm.Root
		for _, b := range w.up() {
			info, err := b.self().Info(w.t.Context())
			if err != nil {
				w.t.Fatal(err)
			}
			roots = append(roots, info.Root, info.ClusterRoot)
		}
		for i := 2; i < len(roots); i++ {
			if roots[i] != roots[i-2] {
				return false
			}
		}
		return true
	})
}

// eventually waits for what must come about.
func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patienceOfTest)
	for !is() {
		if time.Now().After(deadline) {
			w.t.Fatal(what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// connect waits until the HSMs that are up are connected to each other.
func (w *world) connect() {
	w.t.Helper()
	w.eventually("the HSMs are not connected", func() bool {
		up := w.up()
		return !slices.ContainsFunc(up, func(b *box) bool { return len(b.server.sync.connected()) < len(up)-1 })
	})
}

// rounds waits until every HSM that is up has synced with all of its peers once
// more. All HSMs must be up.
func (w *world) rounds() {
	w.t.Helper()
	began := time.Now()
	w.eventually("server-side sync stands still", func() bool {
		return !slices.ContainsFunc(w.up(), func(b *box) bool { return b.server.sync.lastSync().Before(began) })
	})
}

// logged collects what servers log.
type logged struct {
	mu   sync.Mutex
	text []byte
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	return len(b), nil
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
