package pkcs11

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// App is one application. It implements rpc.App.
type App struct {
	d    *Daemon
	peer Peer
	form rpc.Form
	log  *slog.Logger

	mu       sync.Mutex
	closed   bool
	sessions map[uint64]*session
	last     uint64           // session handle given last
	logins   map[*slot]*login // at most one for each slot
	objects  objects
	held     atomic.Int64 // bytes in operations and searches under way
}

func newApp(d *Daemon, peer Peer, form rpc.Form) *App {
	return &App{d: d, peer: peer, form: form, log: d.log.With("application", peer), sessions: map[uint64]*session{}, logins: map[*slot]*login{}}
}

// ending is the context of what an application's end takes: its own may be over.
func (a *App) ending() (context.Context, context.CancelFunc) {
	return context.WithTimeout(hsm.WithApplication(context.Background(), a.peer.application()), endTime)
}

// renumber begins with handles that no other process has given this application: those
// it still has from before must name nothing.
func (a *App) renumber() {
	var b [8]byte
	rand.Read(b[:])
	a.last = uint64(binary.BigEndian.Uint32(b[:])>>2 | 1<<16) // below 2^31, for 32-bit applications
	a.objects.last = uint64(binary.BigEndian.Uint32(b[4:])>>2 | 1<<16)
}

// Close implements rpc.App.
func (a *App) Close() {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	a.closed = true
	sessions := a.sessions
	logins := a.logins
	a.sessions, a.logins = map[uint64]*session{}, map[*slot]*login{}
	a.mu.Unlock()
	var objects []*object
	for _, s := range sessions {
		objects = append(objects, a.forget(s)...)
	}
	for _, l := range logins {
		var made []*object
		made, objects = split(objects, l)
		l.leave(func() { a.discard(made) })
	}
	a.discard(objects)
}

// handler serves one call.
type handler func(a *App, ctx context.Context, args rpc.Args) ([]any, error)

// sessionHandler serves a call whose first argument is a session. Calls of one
// session come one after the other.
type sessionHandler func(s *session, ctx context.Context, args rpc.Args) ([]any, error)

// Call implements rpc.App.
func (a *App) Call(ctx context.Context, call rpc.Call, args rpc.Args) (out []any, err error) {
	a.d.stats.Calls.Add(1)
	ctx = hsm.WithApplication(ctx, a.peer.application())
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("a call panicked", "call", call.String(), "panic", fmt.Sprintf("%T", p))
			out, err = nil, ck.GeneralError
		}
		if err != nil {
			err = a.translate(call, err)
		}
	}()
	if h, ok := handlers[call]; ok {
		return h(a, ctx, args)
	}
	h, ok := sessionHandlers[call]
	if !ok {
		return nil, ck.FunctionNotSupported
	}
	s, err := a.session(args.Ulong(0))
	if err != nil {
		return nil, err
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.over {
		return nil, ck.SessionHandleInvalid
	}
	out, err = h(s, ctx, args)
	if full := s.account(); err == nil && full != nil {
		return nil, full
	}
	return out, err
}

// translate turns an error into a return value, and logs what the return value
// does not tell.
func (a *App) translate(call rpc.Call, err error) error {
	a.d.stats.Errors.Add(1)
	var rv ck.RV
	if errors.As(err, &rv) {
		return rv
	}
	rv = codeOf(err)
	switch {
	case errors.Is(err, cluster.ErrAvailability):
		a.d.stats.Refusals.Add(1)
		a.log.Error(availabilityLine(err), "call", call.String(), "rv", rv.Error(), "error", err)
	case rv == ck.GeneralError || rv == ck.DeviceError || rv == ck.FunctionFailed:
		a.log.Error("call failed", "call", call.String(), "rv", rv.Error(), "error", err)
	default:
		a.log.Debug("call refused", "call", call.String(), "rv", rv.Error(), "error", err)
	}
	return rv
}

// availabilityLine is what CloudHSM's client logs, word by word.
func availabilityLine(err error) string {
	var short *cluster.CopiesError
	if errors.As(err, &short) && short.Check {
		return short.Availability()
	}
	var refused *cluster.AvailabilityError
	if errors.As(err, &refused) {
		return refused.Error()
	}
	return err.Error()
}
