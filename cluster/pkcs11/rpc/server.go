package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Opener makes the application of a connection. The Form tells which mechanisms
// its client passes on; resumed that another process has served it before. An error
// ends the connection at once.
type Opener func(c net.Conn, form Form, resumed bool) (App, error)

// Server serves connections. The zero value with Open set is ready.
type Server struct {
	Open Opener
	// MaxConns bounds the connections that are served at once; 0: no bound. Further
	// ones are closed, which a client reports as CKR_DEVICE_ERROR.
	MaxConns int
	// Ended is called at the end of each connection; err is nil if it ended well.
	Ended func(app App, err error)

	large    chan struct{}
	watching atomic.Bool
	workers  workers
	room     *room // for the requests of all
	once     sync.Once

	mu      sync.Mutex
	conns   map[*conn]byte // what each has offered
	handing bool           // connections are to be handed over
	handed  []Handed
	work    sync.WaitGroup
}

// Handed is a connection between two requests, for another process to serve on.
type Handed struct {
	Conn  net.Conn
	State State
}

func (s *Server) init() {
	s.once.Do(func() {
		s.large = make(chan struct{}, largePlaces)
		s.room = newRoom(allRoom)
		s.conns = map[*conn]byte{}
		if s.Ended == nil {
			s.Ended = func(App, error) {}
		}
	})
}

// Serve accepts connections until the context ends, and serves them. Requests under way
// are finished before it returns; then the connections are closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.init()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			s.drain()
			return nil
		}
		if err != nil {
			if temporary(err) {
				pause(ctx)
				continue
			}
			s.drain()
			return err
		}
		s.take(ctx, c, nil)
	}
}

// temporary: too many open files, for instance.
func temporary(err error) bool { return !errors.Is(err, net.ErrClosed) }

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}

// Resume serves a connection on that another process has handed over. To the
// application it is as if its token had been pulled out and put in again: it is
// initialized, and has no sessions.
func (s *Server) Resume(ctx context.Context, h Handed) {
	s.init()
	s.take(ctx, h.Conn, &h.State)
}

func (s *Server) take(ctx context.Context, nc net.Conn, from *State) {
	s.mu.Lock()
	full := s.handing || s.MaxConns > 0 && len(s.conns) >= s.MaxConns
	c := &conn{server: s, net: nc, places: make(chan struct{}, maxInFlight), room: newRoom(connRoom), all: s.room}
	if !full {
		s.conns[c] = 0
	}
	s.mu.Unlock()
	if full {
		nc.Close()
		return
	}
	s.work.Go(func() { s.serve(ctx, c, from) })
}

// serve serves one connection from its first byte to its end.
func (s *Server) serve(ctx context.Context, c *conn, from *State) {
	var err error
	offered := byte(0)
	if from != nil {
		offered, c.ready, c.in.buf = from.Offered, true, from.Pending
		err = c.net.SetDeadline(time.Time{}) // it was interrupted
	} else {
		offered, err = negotiate(c.net)
	}
	c.form, c.in.from = FormOf(offered), c.net
	c.in.large = func() (func(), error) { return s.place(ctx, c) }
	if err == nil {
		c.app, err = s.Open(c.net, c.form, from != nil)
	}
	if err != nil {
		s.forget(c)
		c.net.Close()
		return
	}
	s.note(c, offered)
	stop := context.AfterFunc(ctx, func() { c.net.SetReadDeadline(time.Now()) })
	err = c.run(ctx)
	stop()
	kept := s.keep(c, err)
	if kept || ctx.Err() != nil {
		err = nil
	}
	c.app.Close()
	s.Ended(c.app, err)
	if !kept {
		c.net.Close()
	}
	s.forget(c)
}

// note remembers what a connection has offered; one that comes too late to be handed
// over otherwise is interrupted here.
func (s *Server) note(c *conn, offered byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = offered
	if s.handing {
		c.net.SetReadDeadline(time.Now())
	}
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// place waits for one of the places for large requests. Such a request must then
// arrive in time.
func (s *Server) place(ctx context.Context, c *conn) (done func(), err error) {
	select {
	case s.large <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := c.net.SetReadDeadline(time.Now().Add(largeTime)); err != nil {
		<-s.large
		return nil, err
	}
	s.mind(ctx, c)
	return func() {
		<-s.large
		c.net.SetReadDeadline(time.Time{})
		s.mind(ctx, c)
	}, nil
}

// mind interrupts a connection again whose deadline was changed meanwhile.
func (s *Server) mind(ctx context.Context, c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handing || ctx.Err() != nil {
		c.net.SetReadDeadline(time.Now())
	}
}

// keep puts a connection that was interrupted between two requests, or within one that
// had not arrived whole, among those to hand over.
func (s *Server) keep(c *conn, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.handing || !errors.Is(err, os.ErrDeadlineExceeded) || !c.initialized() || c.broken != nil {
		return false
	}
	s.handed = append(s.handed, Handed{Conn: c.net, State: State{Offered: s.conns[c], Pending: c.in.buf}})
	return true
}

// HandOver stops serving: requests under way are finished, and the connections are
// returned, open. Those that have not initialized yet are closed. Serve must have
// returned, or its listener be closed to new connections.
func (s *Server) HandOver() []Handed {
	s.init()
	s.mu.Lock()
	s.handing = true
	for c := range s.conns {
		c.net.SetReadDeadline(time.Now())
	}
	s.mu.Unlock()
	s.drain()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handed
}

// drain waits until no connection is served.
func (s *Server) drain() {
	s.work.Wait()
	s.workers.close()
}
