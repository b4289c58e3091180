package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// MaxSessions is what one application may have open (cloudhsm.md §2.6).
const MaxSessions = 1024

// Slot is one cluster that applications may use.
type Slot struct {
	Profile *profile.Profile
	Options []cluster.Option
}

// Daemon serves applications. It is safe for concurrent use.
type Daemon struct {
	slots []*slot
	log   *slog.Logger
	stats *Stats
	// mayConnect refuses peers.
	mayConnect func(Peer) error
	held       atomic.Int64 // bytes in operations and searches of all applications
}

// slot is a Slot with the logins of its applications.
type slot struct {
	Slot
	id     uint64
	serial string

	mu     sync.Mutex
	logins map[string]*shelf // by user
}

// New makes a daemon. Slot numbers follow the order of the slots, from 0.
func New(slots []Slot, log *slog.Logger, mayConnect func(Peer) error) (*Daemon, error) {
	if len(slots) == 0 {
		return nil, fmt.Errorf("%w: no cluster to serve", hsm.ErrInvalid)
	}
	d := &Daemon{log: log, stats: &Stats{}, mayConnect: mayConnect}
	for i, s := range slots {
		d.slots = append(d.slots, &slot{Slot: s, id: uint64(i), serial: serialOf(s.Profile), logins: map[string]*shelf{}})
	}
	return d, nil
}

// Stats returns the counters of the daemon.
func (d *Daemon) Stats() *Stats { return d.stats }

// Server is a server of the wire with this daemon behind it.
func (d *Daemon) Server(maxConns int) *rpc.Server {
	return &rpc.Server{Open: d.open, MaxConns: maxConns, Ended: d.ended}
}

// open begins an application.
func (d *Daemon) open(c net.Conn, form rpc.Form, resumed bool) (rpc.App, error) {
	peer, err := peerOf(c)
	if err == nil && d.mayConnect != nil {
		err = d.mayConnect(peer)
	}
	if err != nil {
		d.log.Warn("application refused", "peer", peer, "error", err)
		return nil, err
	}
	d.stats.Applications.Add(1)
	d.stats.Connected.Add(1)
	a := newApp(d, peer, form)
	if resumed {
		a.renumber()
	}
	a.log.Debug("application connected")
	return a, nil
}

func (d *Daemon) ended(app rpc.App, err error) {
	a := app.(*App)
	d.stats.Connected.Add(-1)
	if err != nil {
		a.log.Warn("application ended", "error", err)
		return
	}
	a.log.Debug("application ended")
}

// shelf holds the logins of one user on one slot. opening is held while one is
// made, so that applications that start together log in once.
type shelf struct {
	slot    *slot
	user    string
	coming  int // logins under way, guarded by slot.mu
	opening sync.Mutex
	mu      sync.Mutex
	logins  []*login
}

// login is a connection to a cluster as one user, shared by applications.
type login struct {
	*cluster.Cluster
	shelf    *shelf
	password hsm.Secret
	users    int // guarded by shelf.mu
}

// shelf returns the user's, for a login. The caller calls tidy when that has ended.
func (s *slot) shelf(user string) *shelf {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.logins[user]
	if sh == nil {
		sh = &shelf{slot: s, user: user}
		s.logins[user] = sh
	}
	sh.coming++
	return sh
}

// tidy forgets a shelf that nobody uses: applications may try any number of names.
func (sh *shelf) tidy(came int) {
	sh.slot.mu.Lock()
	defer sh.slot.mu.Unlock()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.coming -= came; sh.coming == 0 && len(sh.logins) == 0 && sh.slot.logins[sh.user] == sh {
		delete(sh.slot.logins, sh.user)
	}
}

// login logs a user in, or takes part in a login with the same password that an HSM
// has accepted and still does. The caller ends it with leave. The log is for the
// connection, which outlives the application that makes it.
func (s *slot) login(ctx context.Context, log *slog.Logger, user string, password hsm.Secret) (*login, error) {
	sh := s.shelf(user)
	defer sh.tidy(1)
	sh.opening.Lock()
	defer sh.opening.Unlock()
	if l := sh.join(password); l != nil {
		if l.works(ctx) {
			return l, nil
		}
		l.leave(nothing)
	}
	options := append([]cluster.Option{cluster.WithLog(log), cluster.WithSessionKeysTogether()}, s.Options...)
	c, err := cluster.Open(ctx, s.Profile, cluster.Credential{Role: hsm.RoleCryptoUser, Name: user, Password: password}, options...)
	if err != nil {
		return nil, err
	}
	l := &login{Cluster: c, shelf: sh, password: hsm.NewSecret(append([]byte{}, password.Reveal()...)), users: 1}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.logins = append(sh.logins, l)
	return l, nil
}

func (sh *shelf) join(password hsm.Secret) *login {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, l := range sh.logins {
		if l.password.Equal(password) {
			l.users++
			return l
		}
	}
	return nil
}

// works tells whether HSMs still accept the login: they end the sessions of a user
// who was deleted or has another password. An HSM that is away does not make a
// password wrong.
func (l *login) works(ctx context.Context) bool {
	_, err := l.Use(ctx, hsm.Use{Kind: hsm.UseRandom, Length: 1})
	return err == nil || errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, hsm.ErrLogin)
}

// has tells whether password is that of the login.
func (l *login) has(password hsm.Secret) bool {
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	return l.password.Equal(password)
}

// now notes that the user has another password: applications that come with the old
// one do not take part any more.
func (l *login) now(password hsm.Secret) {
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	l.password = hsm.NewSecret(append([]byte{}, password.Reveal()...))
}

// leave ends one application's part. The last one closes the connection, and HSMs destroy
// all session keys with it, at once. While there are others, discard destroys those of
// this application; if the last of them leaves meanwhile, there is nothing left to destroy.
func (l *login) leave(discard func()) {
	l.shelf.mu.Lock()
	l.users--
	last := l.users == 0
	if last {
		kept := l.shelf.logins[:0]
		for _, o := range l.shelf.logins {
			if o != l {
				kept = append(kept, o)
			}
		}
		l.shelf.logins = kept
	}
	l.shelf.mu.Unlock()
	if last {
		l.shelf.tidy(0)
		l.Close()
		l.password.Wipe()
		return
	}
	discard()
}

// nothing is what an application has to destroy that has used no keys.
func nothing() {}
