package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// inlineBytes is what callers write themselves while it is not answered: a socket
// whose buffer is sendBytes takes so much without waiting for the other side, whatever
// that does. Beyond it a goroutine writes, so that nobody is held up beyond its
// deadline.
const (
	inlineBytes = 64 << 10
	sendBytes   = 256 << 10
)

// line is one connection for calls, seen by the caller.
type line struct {
	conn net.Conn // TLS
	in   *frames  // of whoever is the reader
	free int      // inlineBytes, or 0 if nothing is known of conn's buffer
	done chan struct{}

	mu      sync.Mutex
	waiting map[uint64]*call // asked and not answered, or given up
	patient int              // how many of them somebody waits for
	reader  *call            // who reads; nil: nobody
	queue   []asked
	gone    []uint64
	unread  int // bytes of what was asked and not answered
	writing bool
	reads   uint64 // frames
	ping    bool   // one is to be sent
	ending  bool   // nothing more may be asked
	over    error  // why the connection has ended
	out     []byte // of whoever writes
}

// asked is a call that is to be sent.
type asked struct {
	id uint64
	b  []byte
}

// call is one that waits for its answer.
type call struct {
	id    uint64
	size  int
	wake  chan struct{} // holds a token when done, or when it is to read
	left  bool          // nobody waits any more
	ended bool          // out or err is set
	out   *pb.Answer
	err   error
}

func (w *call) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func newLine(conn net.Conn, in *frames) *line {
	in.most = maxFrame
	l := &line{conn: conn, in: in, done: make(chan struct{}), waiting: map[uint64]*call{}}
	if b, ok := rawConn(conn).(interface{ SetWriteBuffer(int) error }); ok && b.SetWriteBuffer(sendBytes) == nil {
		l.free = inlineBytes
	}
	return l
}

// rawConn is what lies below the layers of a connection.
func rawConn(conn net.Conn) net.Conn {
	for {
		switch c := conn.(type) {
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return conn
		}
	}
}

func (l *line) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over != nil || l.ending
}

// ask sends a call; nil if the connection is over, and then it was not sent.
func (l *line) ask(id uint64, b []byte) *call {
	l.mu.Lock()
	if l.over != nil || l.ending {
		l.mu.Unlock()
		return nil
	}
	w := &call{id: id, size: len(b), wake: make(chan struct{}, 1)}
	l.waiting[id] = w
	l.patient++
	l.unread += w.size
	l.queue = append(l.queue, asked{id, b})
	l.send() // unlocks
	return w
}

// send has what is queued written: by the caller, who gives up l.mu, if it cannot be
// held up by that, and otherwise by a goroutine.
func (l *line) send() {
	switch {
	case l.writing || l.over != nil:
		l.mu.Unlock()
	case l.unread > l.free:
		l.writing = true
		l.mu.Unlock()
		go l.write(false)
	default:
		l.writing = true
		crowded := len(l.queue) == 1 && l.patient > 1
		l.mu.Unlock()
		if crowded {
			runtime.Gosched() // those who are about to ask share the frame
		}
		l.write(true)
	}
}

// write writes until nothing is queued. A caller writes once: what others have
// queued meanwhile is not its to wait for.
func (l *line) write(once bool) {
	for {
		b := l.take()
		if b == nil {
			return
		}
		if _, err := l.conn.Write(b); err != nil {
			l.fail(err)
			return
		}
		if once {
			l.mu.Lock()
			l.writing = false
			if len(l.queue)+len(l.gone) > 0 && l.over == nil {
				l.writing = true
				go l.write(false)
			}
			l.mu.Unlock()
			return
		}
	}
}

// take takes one frame's worth off the queue; nil, and nobody writes any more, if
// it is empty.
func (l *line) take() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != nil || len(l.queue)+len(l.gone) == 0 && !l.ping {
		l.writing = false
		return nil
	}
	l.ping = false
	b := beginFrame(l.out)
	n := 0
	for n < len(l.queue) && n < maxCalls && len(b) < batchBytes {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, l.queue[n].b)
		l.queue[n].b = nil
		n++
	}
	for _, id := range l.gone {
		b = protowire.AppendTag(b, 2, protowire.VarintType)
		b = protowire.AppendVarint(b, id)
	}
	if l.queue, l.gone = l.queue[n:], l.gone[:0]; len(l.queue) == 0 {
		l.queue = nil
	}
	if l.out = endFrame(b); cap(b) > keptBytes {
		l.out = nil
	}
	return b
}

// wait waits for the answer of a call, and reads for all who wait when nobody else
// does. It ends without one when the connection does, or ctx.
func (l *line) wait(ctx context.Context, w *call) error {
	for {
		l.mu.Lock()
		if w.ended {
			l.mu.Unlock()
			return w.err
		}
		if l.reader == nil {
			l.reader = w
		}
		mine := l.reader == w
		l.mu.Unlock()
		if mine {
			l.read(ctx, w)
		} else {
			select {
			case <-w.wake:
				continue
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return l.leave(w, ctx.Err())
		}
	}
}

// read reads until w has its answer, or nobody gets one any more, or ctx is done.
func (l *line) read(ctx context.Context, w *call) {
	restore := l.breakable(ctx)
	var err error
	for more := true; more && err == nil; {
		var frame []byte
		if frame, err = l.in.next(); err == nil {
			more, err = l.deliver(frame, w)
		}
	}
	restore()
	if err != nil && !(ctx.Err() != nil && isTimeout(err)) {
		l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handOver(w)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// breakable has ctx break a read off. restore makes reads possible again.
func (l *line) breakable(ctx context.Context) (restore func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	broken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.conn.SetReadDeadline(time.Unix(1, 0))
		close(broken)
	})
	return func() {
		if !stop() {
			<-broken
			l.conn.SetReadDeadline(time.Time{})
		}
	}
}

// handOver has somebody else read, if w was who did.
func (l *line) handOver(w *call) {
	if l.reader != w {
		return
	}
	l.reader = nil
	for _, next := range l.waiting {
		if next != w && !next.left {
			l.reader = next
			next.wakeUp()
			return
		}
	}
}

// deliver hands out the answers of a frame, and those that have been read already.
// more tells whether w still waits.
func (l *line) deliver(frame []byte, w *call) (more bool, err error) {
	for ok := true; ok; {
		reply := &pb.CallsReply{}
		if err := proto.Unmarshal(frame, reply); err != nil {
			return true, fmt.Errorf("answers do not decode: %w", err)
		}
		l.answered(reply)
		if frame, ok, err = l.in.whole(); err != nil {
			return true, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !w.ended, nil
}

func (l *line) answered(reply *pb.CallsReply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	for _, a := range reply.GetAnswers() {
		w := l.waiting[a.GetId()]
		if w == nil {
			continue
		}
		delete(l.waiting, w.id)
		l.unread -= w.size
		if !w.left {
			l.patient--
			w.out, w.ended = a, true
			w.wakeUp()
		}
	}
}

// leave tells the HSM that nobody waits for the answer, unless it was never asked.
func (l *line) leave(w *call, err error) error {
	l.mu.Lock()
	l.handOver(w)
	if w.ended { // after all
		l.mu.Unlock()
		return w.err
	}
	w.left = true
	l.patient--
	for i, q := range l.queue {
		if q.id == w.id {
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
			delete(l.waiting, w.id)
			l.unread -= w.size
			l.mu.Unlock()
			return err
		}
	}
	l.gone = append(l.gone, w.id)
	l.send() // unlocks
	return err
}

// fail ends the connection. Whoever waits gets err.
func (l *line) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != nil {
		return
	}
	l.over = err
	for _, w := range l.waiting {
		if !w.left {
			w.err, w.ended = err, true
			w.wakeUp()
		}
	}
	l.waiting, l.queue, l.gone, l.patient, l.unread = nil, nil, nil, 0, 0
	close(l.done)
	rawConn(l.conn).Close() // below TLS, which would first say so, and could be kept waiting
}

// watch ends the connection when that of its session has ended, and when the HSM
// owes answers and does not even answer an empty frame. That no answer comes for a
// while is no sign: some calls take long.
func (l *line) watch(lost <-chan struct{}) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	seen, silent := uint64(0), 0
	for {
		select {
		case <-l.done:
			return
		case <-lost:
			l.lose()
			return
		case <-tick.C:
		}
		l.mu.Lock()
		if l.reads != seen || l.patient == 0 {
			seen, silent = l.reads, 0
			l.mu.Unlock()
			continue
		}
		silent++
		l.ping = silent%pingAfter == 0
		if l.ping {
			l.sendAside()
		}
		l.mu.Unlock()
		if silent >= 2*deadAfter {
			l.fail(errSilent)
			return
		}
	}
}

// lose ends the connection after that of its session. An HSM that stops answers what it
// has begun before it ends either: what has arrived is read first.
func (l *line) lose() {
	l.mu.Lock()
	l.ending = true
	idle := l.patient == 0
	l.mu.Unlock()
	if !idle {
		select {
		case <-l.done:
		case <-time.After(lostGrace):
		}
	}
	l.fail(net.ErrClosed)
}

// sendAside has what is queued written by a goroutine.
func (l *line) sendAside() {
	if !l.writing && l.over == nil {
		l.writing = true
		go l.write(false)
	}
}
