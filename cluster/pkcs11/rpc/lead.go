package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// To have another goroutine answer a request costs as much as most answers do. So whoever
// reads a connection, its reader, answers a request itself that asks nobody, and any
// while all come from one session: those wait for one another anyway, and an application
// with one thread has no others. Should that take long, a watch has another goroutine
// read on: no request waits for longer than two of its looks because another one of its
// connection is being answered.

const (
	// aloneAfter is how many requests of one session in a row it takes, and
	// aloneAgain after its reader was relieved.
	aloneAfter = 8
	aloneAgain = 64
	// look is how often the watch looks, and idleLooks after how many at which
	// nothing was going on it ends.
	look      = 10 * time.Millisecond
	idleLooks = 20
)

// lead is the state of a connection's reader.
type lead struct {
	// turn is odd while the reader answers a request itself, and grows by one when it
	// begins and when it ends. If it has grown when it wants to end, it is the reader
	// no more.
	turn  atomic.Uint64
	ended chan error // how the connection has ended

	session uint64 // of the last request; the reader's
	alone   int    // requests of that session in a row, the reader's

	looked uint64 // turn at the last look, the watch's
}

// step is what follows a request.
type step uint8

const (
	goOn step = iota
	over      // C_Finalize was answered
	left      // another goroutine reads on
)

// run serves requests until the connection ends, the application finalizes, or
// something is malformed. It returns nil for the first two. Requests under way are
// finished before it returns.
func (c *conn) run(ctx context.Context) error {
	defer c.work.Wait()
	c.lead.ended = make(chan error, 1)
	c.read(ctx)
	return <-c.lead.ended
}

// read reads and serves requests until they end, or another goroutine reads on.
func (c *conn) read(ctx context.Context) {
	for {
		next, err := c.request(ctx)
		switch {
		case next == left:
			return
		case next == over || err != nil:
			c.lead.ended <- err
			return
		}
	}
}

// request reads and serves one request.
func (c *conn) request(ctx context.Context) (step, error) {
	select {
	case c.places <- struct{}{}:
	case <-ctx.Done():
		return over, ctx.Err()
	}
	f, err := c.in.next()
	if err == io.EOF || errors.Is(err, net.ErrClosed) {
		return over, nil
	}
	if err != nil {
		return over, err
	}
	held, err := c.hold(ctx, len(f.body))
	if f.arrived != nil {
		f.arrived()
	}
	if err != nil {
		return over, err
	}
	return c.serve(ctx, f, func() { held(); <-c.places })
}

// serve decodes one request and answers it, or has it answered; done is called when
// that has ended.
func (c *conn) serve(ctx context.Context, f frame, done func()) (step, error) {
	call, args, rv, err := c.decode(f)
	switch {
	case err != nil:
		done()
		return over, err
	case rv != ck.OK:
		done()
		return goOn, c.write(encodeError(f.code, rv))
	case call == Initialize:
		done()
		return goOn, c.initialize(f.code, args)
	case call == Finalize:
		done()
		c.work.Wait()
		c.app.Close()
		return over, c.write(encode(f.code, call, nil))
	}
	answer := func() {
		defer done()
		c.answer(ctx, f.code, call, args)
	}
	if call == Pair {
		begin, do, err := c.pair(args)
		if err != nil {
			done()
			return over, err
		}
		answer = func() {
			defer done()
			c.answerPair(ctx, f.code, begin, do)
		}
	}
	if !c.here(call, args) {
		c.work.Add(1)
		c.server.workers.do(func() {
			defer c.work.Done()
			answer()
		})
		return goOn, nil
	}
	return c.answerHere(ctx, answer), nil
}

// here tells whether the reader is to answer a request itself.
func (c *conn) here(call Call, args Args) bool {
	if strings.HasPrefix(signatures[call].Request, "u") { // a session, where an HSM is asked
		if session := args.Ulong(0); session != c.lead.session {
			c.lead.session, c.lead.alone = session, min(c.lead.alone, 0)
		} else if c.lead.alone < aloneAfter {
			c.lead.alone++
		}
	}
	return prompt[call] || c.lead.alone >= aloneAfter
}

// answerHere answers a request, watched.
func (c *conn) answerHere(ctx context.Context, answer func()) step {
	c.work.Add(1)
	defer c.work.Done()
	turn := c.lead.turn.Add(1)
	c.server.watched(ctx)
	answer()
	if !c.lead.turn.CompareAndSwap(turn, turn+1) {
		return left
	}
	return goOn
}

// relieve has another goroutine read on if the reader has been answering the same
// request at two looks. It tells whether anything has happened in between, or does.
func (c *conn) relieve(ctx context.Context) (busy bool) {
	turn := c.lead.turn.Load()
	before := c.lead.looked
	c.lead.looked = turn
	if turn%2 == 1 && turn == before && c.lead.turn.CompareAndSwap(turn, turn+1) {
		go func() {
			c.lead.alone = -aloneAgain
			c.read(ctx)
		}()
	}
	return turn != before || turn%2 == 1
}

// watched has the watch run, while a reader answers a request.
func (s *Server) watched(ctx context.Context) {
	if !s.watching.Load() && s.watching.CompareAndSwap(false, true) {
		go s.watch(ctx)
	}
}

// watch looks after readers until none has answered anything for a while. One that
// begins when it is about to end either finds it running or is seen here.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for idle := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done(): // nothing is read any more
			return
		}
		if idle++; s.relieve(ctx) {
			idle = 0
		}
		if idle < idleLooks {
			continue
		}
		s.watching.Store(false)
		if !s.relieve(ctx) || !s.watching.CompareAndSwap(false, true) {
			return
		}
		idle = 0
	}
}

func (s *Server) relieve(ctx context.Context) (busy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		busy = c.relieve(ctx) || busy
	}
	return busy
}
