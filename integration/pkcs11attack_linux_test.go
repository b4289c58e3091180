package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// attacker speaks to the daemon as badly as it likes. It offers the byte of our module.
type attacker struct {
	net.Conn
	code uint32
}

func (w *moduleWorld) attacker(t *testing.T) *attacker {
	t.Helper()
	c, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(deadline))
	if _, err := c.Write([]byte{0x48}); err != nil {
		t.Fatal(err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil || answer[0] != 0x48 {
		t.Fatalf("the daemon answered %x, %v", answer, err)
	}
	return &attacker{Conn: c, code: 16}
}

func u32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func u64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
func ay(b []byte, s string) []byte  { return append(u32(append(b, 1), uint32(len(s))), s...) }

// frame is a request with a header that is true.
func (a *attacker) frame(call uint32, signature string, values []byte) []byte {
	a.code++
	body := append(u32(u32(nil, call), uint32(len(signature))), signature...)
	body = append(body, values...)
	return append(u32(u32(u32(nil, a.code), 0), uint32(len(body))), body...)
}

var errHungUp = errors.New("the daemon hung up")

// ask sends bytes and returns the values of the answer, or the return value.
func (a *attacker) ask(frame []byte) (values []byte, rv uint64, err error) {
	if _, err := a.Write(frame); err != nil {
		return nil, 0, errHungUp
	}
	var head [12]byte
	if _, err := io.ReadFull(a, head[:]); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, 0, err
		}
		return nil, 0, errHungUp
	}
	body := make([]byte, binary.BigEndian.Uint32(head[8:]))
	if _, err := io.ReadFull(a, body); err != nil {
		return nil, 0, errHungUp
	}
	values = body[8+binary.BigEndian.Uint32(body[4:]):]
	if binary.BigEndian.Uint32(body) == 0 {
		return nil, binary.BigEndian.Uint64(values), nil
	}
	return values, 0, nil
}

const handshake = "PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"

func (a *attacker) hello(t *testing.T) {
	t.Helper()
	if _, rv, err := a.ask(a.frame(1, "ayyay", ay(append(ay(nil, handshake), 0), "\x00"))); rv != 0 || err != nil {
		t.Fatalf("C_Initialize: %#x, %v", rv, err)
	}
}

// session opens a session, and logs alice in if asked.
func (a *attacker) session(t *testing.T, login bool) uint64 {
	t.Helper()
	slots, rv, err := a.ask(a.frame(4, "yfu", u32([]byte{1}, 8)))
	if rv != 0 || err != nil {
		t.Fatalf("C_GetSlotList: %#x, %v", rv, err)
	}
	out, rv, err := a.ask(a.frame(10, "uu", u64(u64(nil, binary.BigEndian.Uint64(slots[5:])), 6)))
	if rv != 0 || err != nil {
		t.Fatalf("C_OpenSession: %#x, %v", rv, err)
	}
	s := binary.BigEndian.Uint64(out)
	if login {
		if _, rv, err := a.ask(a.frame(18, "uuay", ay(u64(u64(nil, s), 1), alicePIN))); rv != 0 || err != nil {
			t.Fatalf("C_Login: %#x, %v", rv, err)
		}
	}
	return s
}

// makeKey makes an AES key, as a session or a token object.
func (a *attacker) makeKey(t *testing.T, s uint64, token byte) uint64 {
	t.Helper()
	values := append(u32(u64(nil, s), 0x1080), 0)                     // CKM_AES_KEY_GEN, no parameter
	values = append(u32(append(u32(u32(values, 2), 1), 1), 1), token) // CKA_TOKEN
	values = u64(u32(append(u32(values, 0x161), 1), 8), 32)           // CKA_VALUE_LEN
	out, rv, err := a.ask(a.frame(58, "uMaA", values))
	if rv != 0 || err != nil {
		t.Fatalf("C_GenerateKey: %#x, %v", rv, err)
	}
	return binary.BigEndian.Uint64(out)
}

// memory is what the daemon has in use, in MiB.
func (w *moduleWorld) memory(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.daemon.cmd.Process.Pid))
	if err != nil {
		t.Fatalf("the daemon is gone: %v\n%s", err, w.daemon.stderr.String())
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// stands says that the daemon lives, has not grown, and serves an honest application.
func (w *moduleWorld) stands(t *testing.T) {
	t.Helper()
	mib := w.memory(t)
	t.Logf("the daemon has %d MiB in use", mib)
	if mib > 400 {
		t.Errorf("that is too much")
	}
	if out, err := w.application(t, "keys").CombinedOutput(); err != nil {
		t.Fatalf("an honest application: %v\n%s\n%s", err, out, w.daemon.stderr.String())
	}
	if strings.Contains(w.daemon.stderr.String(), "panic") {
		t.Errorf("the daemon panicked:\n%s", w.daemon.stderr.String())
	}
}

// attacked is every attack in turn; after each the daemon stands.
func (w *moduleWorld) attacked(t *testing.T) {
	for _, attack := range []struct {
		name string
		run  func(*testing.T, *moduleWorld)
	}{
		{"lengths", attackLengths}, {"claims", attackClaims}, {"templates", attackTemplates}, {"handles", attackHandles}, {"early", attackEarly},
		{"mutations", attackMutations}, {"deaf", attackDeaf}, {"thousand", attackThousand},
	} {
		t.Run(attack.name, func(t *testing.T) {
			attack.run(t, w)
			w.stands(t)
		})
	}
}

// attackLengths claims frames longer than the limit, up to 4 GiB: the daemon hangs up
// without waiting for them.
func attackLengths(t *testing.T, w *moduleWorld) {
	for _, lengths := range [][2]uint32{{0xffffffff, 8}, {0, 0xffffffff}, {0, 64<<20 + 1}, {0x80000000, 0x80000000}, {0, 0}, {0, 7}} {
		a := w.attacker(t)
		if _, _, err := a.ask(append(u32(u32(u32(nil, 17), lengths[0]), lengths[1]), make([]byte, 64)...)); err != errHungUp {
			t.Errorf("options of %d and a body of %d bytes: %v", lengths[0], lengths[1], err)
		}
	}
	a := w.attacker(t)
	a.hello(t)
	s := a.session(t, false)
	for _, n := range []uint32{0x7fffffff, 0x80000000, 0xfffffffe} { // bytes that are not there
		b := w.attacker(t)
		b.hello(t)
		if _, rv, err := b.ask(b.frame(63, "uay", u32(append(u64(nil, s), 1), n))); err != errHungUp && rv == 0 {
			t.Errorf("a seed of %d bytes that are not there: %#x, %v", n, rv, err)
		}
	}
	for _, n := range []uint32{0x7fffffff, 0xfffffffe} { // room that would fill memory
		if out, rv, err := a.ask(a.frame(64, "ufy", u32(u64(nil, s), n))); err == nil && rv == 0 && len(out) > 64<<20 {
			t.Errorf("%d random bytes for the asking", len(out))
		}
	}
}

// attackClaims announces large frames and does not send them.
func attackClaims(t *testing.T, w *moduleWorld) {
	for range 100 {
		a := w.attacker(t)
		a.Write(append(u32(u32(u32(nil, 17), 0), 64<<20), make([]byte, 100)...))
	}
	for range 100 { // and one that does not even say what it speaks
		c, err := net.Dial("unix", w.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
}

// nested is an attribute that contains attributes, depth times.
func nested(depth int) []byte {
	level := u32(append(u32(u32(nil, 1), 0x40000211), 1), 24) // one attribute, CKA_WRAP_TEMPLATE, valid, its length
	return u32(bytes.Repeat(level, depth), 0)
}

func attackTemplates(t *testing.T, w *moduleWorld) {
	for _, template := range [][]byte{nested(9), nested(100), nested(100000), u32(nil, 0xffffffff), u32(nil, 1<<20), u32(u32(u32(append(u32(u32(nil, 1), 0x40000600), 1), 8), 0xffffffff), 0)} {
		a := w.attacker(t)
		a.hello(t)
		s := a.session(t, false)
		if _, rv, err := a.ask(a.frame(26, "uaA", append(u64(nil, s), template...))); err != errHungUp && rv == 0 {
			t.Errorf("a template of %d bytes was taken: %v", len(template), err)
		}
	}
}

const (
	rvSessionHandleInvalid, rvKeyHandleInvalid, rvObjectHandleInvalid = 0xb3, 0x60, 0x82
	rvUserNotLoggedIn                                                 = 0x101
)

// attackHandles uses what belongs to another application: every session and object of
// it that can be guessed.
func attackHandles(t *testing.T, w *moduleWorld) {
	owner, thief, stranger := w.attacker(t), w.attacker(t), w.attacker(t)
	for _, a := range []*attacker{owner, thief, stranger} {
		a.hello(t)
	}
	s := owner.session(t, true)
	key := owner.makeKey(t, s, 0)
	if _, rv, err := thief.ask(thief.frame(13, "u", u64(nil, s))); rv != rvSessionHandleInvalid || err != nil {
		t.Errorf("a session of another application: %#x, %v", rv, err)
	}
	own, other := thief.session(t, false), stranger.session(t, true)
	for h := range key + 64 { // the same user, logged in by another application, and no user
		for _, from := range []struct {
			*attacker
			session uint64
		}{{thief, own}, {stranger, other}} {
			if _, rv, err := from.ask(from.frame(22, "uu", u64(u64(nil, from.session), h))); rv == 0 || err != nil {
				t.Fatalf("object %d of another application was destroyed, or %v", h, err)
			}
		}
	}
	if _, rv, err := owner.ask(owner.frame(22, "uu", u64(u64(nil, s), key))); rv != 0 || err != nil {
		t.Errorf("the owner's key: %#x, %v", rv, err)
	}
}

// attackEarly calls everything before C_Initialize, and what needs a user before login.
func attackEarly(t *testing.T, w *moduleWorld) {
	for call := uint32(2); call < 300; call++ {
		a := w.attacker(t)
		if _, rv, err := a.ask(a.frame(call, "u", u64(nil, 1))); err == nil && rv == 0 && call != 2 {
			t.Errorf("call %d before C_Initialize was answered", call)
		}
		a.Close()
	}
	a := w.attacker(t)
	a.hello(t)
	s := a.session(t, false)
	values := append(u32(u64(nil, s), 0x1080), 0)
	values = u64(u32(append(u32(u32(values, 1), 0x161), 1), 8), 32)
	if _, rv, err := a.ask(a.frame(58, "uMaA", values)); rv != rvUserNotLoggedIn || err != nil {
		t.Errorf("a key before login: %#x, %v", rv, err)
	}
}

// honest are requests of every shape.
func (a *attacker) honest(s, key uint64) [][]byte {
	gcm := u64(ay(nil, "")[:0], s)
	gcm = append(u32(gcm, 0x1087), 1)
	gcm = append(u32(gcm, 12), make([]byte, 12)...)
	gcm = u64(u64(u32(u64(gcm, 96), 0xffffffff), 128), key)
	kdf := u64(u64(append(u32(u64(nil, s), 0x3ac), 1), 0x251), 2)
	kdf = append(u32(u64(kdf, 1), 16), make([]byte, 16)...)
	kdf = append(u32(u64(kdf, 4), 4), "text"...)
	template := u32(u32(u32(append(u32(u32(nil, 2), 0), 1), 8), 0), 4)
	template = append(append(u32(append(u32(template, 3), 1), 5), u32(nil, 5)...), "label"...)
	return [][]byte{
		a.frame(29, "uMu", gcm), a.frame(30, "uayfy", u32(ay(u64(nil, s), "a plaintext"), 100)),
		a.frame(26, "uaA", append(u64(nil, s), template...)), a.frame(27, "ufu", u32(u64(nil, s), 10)), a.frame(28, "u", u64(nil, s)),
		a.frame(24, "uufA", u32(u32(u32(u32(u32(u64(u64(nil, s), key), 2), 0), 8), 0x11), 64)), a.frame(62, "uMuaA", append(u64(kdf, key), template...)),
		a.frame(20, "uaA", append(u64(nil, s), template...)), a.frame(7, "ufu", u32(u64(nil, 0), 100)), a.frame(6, "u", u64(nil, 0)),
		a.frame(42, "uMu", u64(append(u32(u64(nil, s), 0x251), 0), key)), a.frame(60, "uMuufy", u32(u64(u64(append(u32(u64(nil, s), 0x2109), 0), key), key), 100)),
		a.frame(256, "uMuaAfy", u32(append(u64(append(u32(u64(nil, s), 0x17), 0), key), template...), 2000)),
		a.frame(16, "ufy", u32(u64(nil, s), 100)), a.frame(67, "uu", u64(u64(nil, s), 0)), a.frame(64, "ufy", u32(u64(nil, s), 100)),
	}
}

// attackMutations changes bits, cuts and lengthens requests. A daemon may hang up or
// refuse; it has to answer or hang up.
func attackMutations(t *testing.T, w *moduleWorld) {
	const connections, rounds = 8, 20
	var all sync.WaitGroup
	for seed := range uint64(connections) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, 6))
			for range rounds {
				a := w.attacker(t)
				a.hello(t)
				s := a.session(t, seed%2 == 0)
				if err := a.mutate(r, s, 1+r.Uint64N(3)); err != nil && err != errHungUp {
					t.Errorf("seed %d: %v", seed, err)
				}
				a.Close()
			}
		})
	}
	all.Wait()
}

// mutate sends changed requests until the daemon hangs up, or all are sent.
func (a *attacker) mutate(r *rand.Rand, s, key uint64) error {
	for _, frame := range a.honest(s, key) {
		body := frame[12:]
		for range r.IntN(3) {
			body[r.IntN(len(body))] ^= byte(1 << r.IntN(8))
		}
		switch r.IntN(8) {
		case 0:
			body = body[:r.IntN(len(body))]
		case 1:
			body = append(body, byte(r.Uint32()))
		case 2:
			at := r.IntN(len(body))
			copy(body[at:], u32(nil, []uint32{0, 1, 0x7fffffff, 0x80000000, 0xffffffff}[r.IntN(5)]))
		}
		if _, _, err := a.ask(append(u32(frame[:8:8], uint32(len(body))), body...)); err != nil {
			return err
		}
	}
	return nil
}

// attackDeaf sends requests and reads no answer: the daemon stops reading, and does
// not gather answers without end.
func attackDeaf(t *testing.T, w *moduleWorld) {
	for range 20 {
		a := w.attacker(t)
		a.hello(t)
		s := a.session(t, false)
		a.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for range 2000 {
			if _, err := a.Write(a.frame(64, "ufy", u32(u64(nil, s), 60000))); err != nil {
				break
			}
		}
	}
}

// attackThousand has a thousand applications at once, each with a session.
func attackThousand(t *testing.T, w *moduleWorld) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2500 {
		t.Fatalf("this test needs 2500 open files, and may have %d (%v); raise ulimit -n", limit.Cur, err)
	}
	var all []*attacker
	for range 1000 {
		a := w.attacker(t)
		a.hello(t)
		a.session(t, false)
		all = append(all, a)
	}
	for _, a := range all { // none was dropped for another
		if _, rv, err := a.ask(a.frame(3, "", nil)); rv != 0 || err != nil {
			t.Fatalf("C_GetInfo: %#x, %v", rv, err)
		}
	}
}
