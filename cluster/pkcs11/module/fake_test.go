//go:build linux

package module

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// request is a call as it came over the socket.
type request struct {
	code, id  uint32
	signature string
	values    []byte
}

func (r request) String() string { return fmt.Sprintf("%d %s", r.id, hex.EncodeToString(r.values)) }

// readRequest reads one frame, as strictly as a server has to.
func readRequest(from io.Reader) (request, error) {
	var header [12]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return request{}, err
	}
	word := func(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
	options, body := make([]byte, word(header[4:])), make([]byte, word(header[8:]))
	if _, err := io.ReadFull(from, options); err != nil {
		return request{}, err
	}
	if _, err := io.ReadFull(from, body); err != nil {
		return request{}, err
	}
	if string(options) != "hsmbackup" || len(body) < 8 || uint64(word(body[4:]))+8 > uint64(len(body)) || word(header[:]) == 0 {
		return request{}, errors.New("a frame that is none")
	}
	n := word(body[4:]) + 8
	return request{word(header[:]), word(body), string(body[8:n]), body[n:]}, nil
}

// frame is an answer.
func frame(code, id uint32, signature string, values []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, code)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(8+len(signature)+len(values)))
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(signature)))
	return append(append(b, signature...), values...)
}

const functionFailed = 6

func refusal(code uint32) []byte {
	return frame(code, 0, "u", binary.BigEndian.AppendUint64(nil, functionFailed))
}

// fake serves with answers of its own: answer gives the bytes for a request, and
// whether the connection goes on.
type fake struct {
	version byte // what it answers the first byte
	strict  bool // it hangs up on any first byte but its own, as old servers do
	answer  func(request) ([]byte, bool)
}

func (f fake) listen(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "fake")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go f.accept(l)
	return socket
}

func (f fake) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go f.serve(c)
	}
}

func (f fake) serve(c net.Conn) {
	defer c.Close()
	from := bufio.NewReader(c)
	offered, err := from.ReadByte()
	if err != nil || f.strict && offered != f.version {
		return
	}
	c.Write([]byte{f.version})
	for {
		r, err := readRequest(from)
		if err != nil {
			return
		}
		b, ok := f.answer(r)
		if _, err := c.Write(b); err != nil || !ok {
			return
		}
	}
}
