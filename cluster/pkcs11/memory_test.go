package pkcs11

import (
	"fmt"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// TestWhatAnApplicationKeepsIsBounded: not only in each session, of which there may be
// many, but in all. What is refused ends; what has ended is not counted.
func TestWhatAnApplicationKeepsIsBounded(t *testing.T) {
	w := newWorld(t, 1, onlyOne)
	a := w.app()
	first := a.session(bobPIN)
	key := a.aes(first)
	part := make([]byte, 2<<20)
	keeps := func(s uint64) {
		a.call(rpc.EncryptInit, s, gcm(128), key)
		a.call(rpc.EncryptUpdate, s, part, room)
	}
	var all []uint64
	for range maxHeld / len(part) {
		all = append(all, a.open(0))
		keeps(all[len(all)-1])
	}
	one := a.open(0)
	a.call(rpc.EncryptInit, one, gcm(128), key)
	a.want(ck.DeviceMemory, rpc.EncryptUpdate, one, part, room)
	a.want(ck.OperationNotInitialized, rpc.EncryptUpdate, one, part, room)
	a.call(rpc.CloseSession, all[0])
	keeps(one)
	for _, s := range append(all[1:], one) {
		a.call(rpc.CloseSession, s)
	}
	if n, of := a.held.Load(), w.d.held.Load(); n != 0 || of != 0 {
		t.Errorf("%d bytes are counted, %d of all, and nothing is under way", n, of)
	}
}

// TestNamesThatFailAreForgotten: whoever tries names fills no memory.
func TestNamesThatFailAreForgotten(t *testing.T) {
	w := newWorld(t, 1, onlyOne)
	a := w.app()
	s := a.open(0)
	for i := range 5 {
		a.want(ck.PinIncorrect, rpc.Login, s, ck.UserUser, fmt.Appendf(nil, "nobody%d:a-password", i))
	}
	if n := len(w.d.slots[0].logins); n != 0 {
		t.Errorf("%d names are kept", n)
	}
	a.call(rpc.Login, s, ck.UserUser, []byte(bobPIN))
	a.call(rpc.CloseSession, s)
	if n := len(w.d.slots[0].logins); n != 0 {
		t.Errorf("%d names are kept after a logout", n)
	}
}
