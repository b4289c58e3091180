package integration

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// pairRelay stands between the module and the daemon. It counts the pairs of calls, and
// answers them itself if it is to be a daemon that knows none.
type pairRelay struct {
	daemon string
	older  bool
	pairs  atomic.Int64
}

const callPair = 258

// notSupported is the rest of an answer: CKR_FUNCTION_NOT_SUPPORTED.
const notSupported = "00000000" + "00000011" + "00000000" + "00000001" + "75" + "0000000000000054"

func (r *pairRelay) listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
}

func (r *pairRelay) serve(c net.Conn) {
	defer c.Close()
	d, err := net.Dial("unix", r.daemon)
	if err != nil {
		return
	}
	defer d.Close()
	go io.Copy(c, d)
	in := bufio.NewReader(c)
	offered, err := in.ReadByte()
	if err != nil {
		return
	}
	d.Write([]byte{offered})
	for {
		header := make([]byte, 12)
		if _, err := io.ReadFull(in, header); err != nil {
			return
		}
		options := binary.BigEndian.Uint32(header[4:])
		frame := append(header, make([]byte, options+binary.BigEndian.Uint32(header[8:]))...)
		if _, err := io.ReadFull(in, frame[12:]); err != nil {
			return
		}
		if binary.BigEndian.Uint32(frame[12+options:]) == callPair {
			r.pairs.Add(1)
			if r.older { // and nothing of the daemon's is on its way: the program has one thread
				rest, _ := hex.DecodeString(notSupported)
				c.Write(append(frame[:4:4], rest...))
				continue
			}
		}
		if _, err := d.Write(frame); err != nil {
			return
		}
	}
}

// pairs has operations like the last travel with their beginning, and with a daemon that
// does not know how it is tried once.
func (w *moduleWorld) pairs(t *testing.T) {
	for _, older := range []bool{false, true} {
		r := &pairRelay{daemon: w.socket, older: older}
		path := w.path("relay")
		if older {
			path = w.path("relay-older")
		}
		r.listen(t, path)
		c := w.application(t, "pairs")
		c.Env = append(c.Env, "HSMBACKUP_PKCS11_SOCKET="+path)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("older %t: %v\n%s", older, err, out)
		}
		if n := r.pairs.Load(); n < 20 && !older || n != 1 && older {
			t.Errorf("older %t: %d pairs", older, n)
		}
	}
}
