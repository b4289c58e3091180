package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// App is one application: what stands behind one connection. It is safe for
// concurrent use.
type App interface {
	// Call serves one request and returns the values of the answer, in the order of
	// the signature's response. An error that is a ck.RV goes back as it is, any
	// other as CKR_GENERAL_ERROR.
	Call(ctx context.Context, call Call, args Args) ([]any, error)
	// Close ends all that the application has: sessions, login, session objects. No
	// Call is under way, and none follows.
	Close()
}

// handshake is what every client sends with C_Initialize.
const handshake = "PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"

// conn serves one connection.
type conn struct {
	server *Server
	net    net.Conn
	in     frames
	form   Form
	app    App
	places chan struct{} // one for each request under way
	room   *room         // for its requests
	all    *room         // for those of all connections
	work   sync.WaitGroup
	lead   lead

	writing sync.Mutex
	broken  error

	mu    sync.Mutex
	ready bool // C_Initialize was called
}

// State is what a connection is between two requests: enough to serve it on in
// another process.
type State struct {
	Offered byte
	Pending []byte // read and not served
}

// negotiate reads the byte that the peer offers and answers it.
func negotiate(c net.Conn) (offered byte, err error) {
	var b [1]byte
	if err := c.SetDeadline(time.Now().Add(openTime)); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, err
	}
	answer := min(b[0], 1) // version 2 adds one call, which serves other mechanisms
	if b[0] == moduleByte {
		answer = moduleByte
	}
	if _, err := c.Write([]byte{answer}); err != nil {
		return 0, err
	}
	return b[0], c.SetDeadline(time.Time{})
}

// FormOf is the form of mechanisms that follows from the byte a peer offers.
func FormOf(offered byte) Form {
	switch {
	case offered == moduleByte:
		return FormModule
	case offered >= 2:
		return FormNew
	}
	return FormOld
}

// decode reads a request. An error ends the connection; rv is an answer at once.
func (c *conn) decode(f frame) (call Call, args Args, rv ck.RV, err error) {
	r := &reader{b: f.body}
	call = Call(r.u32())
	signature := r.bytes()
	if r.err != nil {
		return 0, nil, 0, r.err
	}
	want, known := SignatureOf(call)
	switch {
	case !known:
		return call, nil, ck.FunctionNotSupported, nil // a newer client may be probing
	case string(signature) != want.Request:
		return call, nil, 0, fmt.Errorf("%w: %s with signature %.20q, want %q", errMalformed, call, signature, want.Request)
	case call != Initialize && !c.initialized():
		return call, nil, ck.CryptokiNotInitialized, nil
	}
	if args, err = decodeAny(call, r.b, c.form); err != nil {
		return call, nil, 0, fmt.Errorf("%s: %w", call, err)
	}
	return call, args, ck.OK, nil
}

func (c *conn) initialized() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}

func (c *conn) initialize(code uint32, args Args) error {
	c.mu.Lock()
	again := c.ready
	c.ready = c.ready || string(args.Bytes(0)) == handshake
	ready := c.ready
	c.mu.Unlock()
	switch {
	case again:
		return c.write(encodeError(code, ck.CryptokiAlreadyInitialized))
	case !ready:
		return c.write(encodeError(code, ck.GeneralError))
	}
	return c.write(encode(code, Initialize, nil))
}

// answer makes the call and writes what it returns.
func (c *conn) answer(ctx context.Context, code uint32, call Call, args Args) {
	values, err := c.app.Call(ctx, call, args)
	if err != nil {
		c.reply(encodeFailure(code, err))
		return
	}
	c.reply(encode(code, call, values))
}

// encodeFailure is the answer of a call that failed.
func encodeFailure(code uint32, err error) []byte {
	var rv ck.RV
	if errors.As(err, &rv) {
		return encodeError(code, rv)
	}
	return encodeError(code, ck.GeneralError)
}

// reply writes an answer. A connection that cannot be written to is closed, which ends run.
func (c *conn) reply(b []byte) {
	if c.write(b) != nil {
		c.net.Close()
	}
}

// write writes one whole frame. After an error the stream has no frames any more.
func (c *conn) write(b []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.broken != nil {
		return c.broken
	}
	c.broken = c.net.SetWriteDeadline(time.Now().Add(writeTime))
	if c.broken == nil {
		_, c.broken = c.net.Write(b)
	}
	return c.broken
}

// codeOf is the code of a frame, for tests.
func codeOf(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
