package integration

import (
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stockModule is the PKCS #11 module of the distribution.
const stockModule = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"

// needPackages fails if a program of Debian's is missing that judges the front door.
func needPackages(t *testing.T) {
	t.Helper()
	for _, program := range []string{"pkcs11-tool", "p11tool", "openssl", "nginx", "curl", "keytool", "jarsigner", "jar", "ssh", "ssh-keygen", "ssh-agent"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Errorf("%v; run make packages", err)
		}
	}
	for _, file := range []string{stockModule, "/usr/lib/x86_64-linux-gnu/engines-3/pkcs11.so", "/usr/sbin/sshd"} {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%v; run make packages", err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// TestPKCS11Readme runs the page about PKCS #11: opensc, GnuTLS, OpenSSL with nginx, Java
// and OpenSSH, none of them written here, use the keys of a cluster.
func TestPKCS11Readme(t *testing.T) {
	t.Parallel()
	needPackages(t)
	runDocument(t, "cluster/pkcs11/README.md", 30, "", "")
}

// wirePeer speaks p11-kit's protocol by hand.
type wirePeer struct {
	t *testing.T
	net.Conn
	code uint32
}

func dialPeer(t *testing.T, socket string) *wirePeer {
	t.Helper()
	c, err := net.Dial("unix", socket)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(deadline)))
	p := &wirePeer{t: t, Conn: c, code: 16}
	_, err = c.Write([]byte{1})
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	must(t, err)
	p.call(1, "ayyay", "0100000029"+hex.EncodeToString([]byte("PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"))+"00"+"010000000100")
	return p
}

// call returns the values of the answer, and the return value if it is an error.
func (p *wirePeer) call(call uint32, signature, values string) (out []byte, rv uint64) {
	p.t.Helper()
	v, err := hex.DecodeString(values)
	must(p.t, err)
	body := binary.BigEndian.AppendUint32(nil, call)
	body = append(binary.BigEndian.AppendUint32(body, uint32(len(signature))), signature...)
	body = append(body, v...)
	p.code++
	frame := binary.BigEndian.AppendUint32(nil, p.code)
	frame = binary.BigEndian.AppendUint32(frame, 0)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(body)))
	_, err = p.Write(append(frame, body...))
	must(p.t, err)
	var head [12]byte
	_, err = io.ReadFull(p, head[:])
	must(p.t, err)
	answer := make([]byte, binary.BigEndian.Uint32(head[8:]))
	_, err = io.ReadFull(p, answer)
	must(p.t, err)
	n := 8 + binary.BigEndian.Uint32(answer[4:])
	if binary.BigEndian.Uint32(answer) == 0 {
		return nil, binary.BigEndian.Uint64(answer[n:])
	}
	return answer[n:], 0
}

func number(n uint64) string { return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, n)) }

// openSession opens a session of slot 0 and logs alice in.
func (p *wirePeer) openSession() uint64 {
	p.t.Helper()
	out, rv := p.call(10, "uu", number(0)+number(6))
	if rv != 0 {
		p.t.Fatalf("C_OpenSession: %#x", rv)
	}
	s := binary.BigEndian.Uint64(out)
	if _, rv := p.call(18, "uuay", number(s)+number(1)+"01"+hex.EncodeToString(binary.BigEndian.AppendUint32(nil, uint32(len(alicePIN))))+hex.EncodeToString([]byte(alicePIN))); rv != 0 {
		p.t.Fatalf("C_Login: %#x", rv)
	}
	return s
}

// startClient starts the daemon and returns it and the path of its socket.
func (c *testCluster) startClient(t *testing.T, more ...string) (*process, string) {
	t.Helper()
	socket := c.path("pkcs11")
	p := c.start(t, append([]string{"client", "--socket", socket, "--cluster", c.dir}, more...)...)
	p.waitReady(t)
	return p, socket
}

// tool runs pkcs11-tool as alice.
func (c *testCluster) tool(t *testing.T, socket string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("pkcs11-tool", append([]string{"--module", stockModule}, args...)...)
	cmd.Dir, cmd.Env = c.machine.dir, append(c.env, "P11_KIT_SERVER_ADDRESS=unix:path="+socket)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

const sessionInvalid = 0xb3

// SIGHUP puts the program on disk in the place of the one that runs: with all sockets,
// under the same process id, and without the sessions of before.
func TestClientIsReplacedWithItsSockets(t *testing.T) {
	t.Parallel()
	needPackages(t)
	c := newCluster(t, newRaceMachine(t), "east", 2)
	daemon, socket := c.startClient(t)
	app := dialPeer(t, socket)
	before := app.openSession()
	if _, rv := app.call(13, "u", number(before)); rv != 0 {
		t.Fatalf("C_GetSessionInfo: %#x", rv)
	}
	for range 2 {
		must(t, daemon.cmd.Process.Signal(syscall.SIGHUP))
		// The call may reach the old program or the new; the new one knows no session.
		for {
			if _, rv := app.call(13, "u", number(before)); rv == sessionInvalid {
				break
			} else if rv != 0 {
				t.Fatalf("C_GetSessionInfo: %#x", rv)
			}
		}
		before = app.openSession()
		if out, err := c.tool(t, socket, "-L"); err != nil || !strings.Contains(out, "token label        : payments") {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if !daemon.alive() {
		t.Error("the process ended")
	}
}

// SIGTERM ends the daemon well: the socket is gone, what was acknowledged is there, and a
// new one takes its place; so it does after a sudden death.
func TestClientStopsAndStarts(t *testing.T) {
	t.Parallel()
	needPackages(t)
	c := newCluster(t, newRaceMachine(t), "east", 2)
	daemon, socket := c.startClient(t)
	login := []string{"--login", "--pin", alicePIN}
	if out, err := c.tool(t, socket, append(login, "--keygen", "--key-type", "aes:32", "--label", "k")...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.nobody().refused(t, 4, "exists", "client", "--socket", socket, "--cluster", c.dir)
	must(t, daemon.cmd.Process.Signal(syscall.SIGTERM))
	<-daemon.done
	if code := daemon.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d: %s", code, daemon.stderr.String())
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	if strings.Contains(daemon.stderr.String(), strings.SplitN(alicePIN, ":", 2)[1]) {
		t.Error("the log has the password")
	}
	if !strings.Contains(daemon.stderr.String(), "program=pkcs11-tool") {
		t.Errorf("the log does not name the application:\n%s", daemon.stderr.String())
	}
	again, _ := c.startClient(t)
	again.kill()
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("want the socket of a dead daemon: %v", err)
	}
	c.startClient(t)
	if out, err := c.tool(t, socket, append(login, "-O")...); err != nil || !strings.Contains(out, "label:      k") {
		t.Errorf("%v\n%s", err, out)
	}
}

// HSMs die under an application that goes on.
func TestApplicationOutlivesHSMs(t *testing.T) {
	t.Parallel()
	needPackages(t)
	c := newCluster(t, newRaceMachine(t), "east", 3)
	_, socket := c.startClient(t)
	app := dialPeer(t, socket)
	s := app.openSession()
	// C_GenerateKey: AES_KEY_GEN, TOKEN true, ENCRYPT true, VALUE_LEN 32.
	out, rv := app.call(58, "uMaA", number(s)+"00001080ffffffff"+"00000003"+"00000001010000000101"+"00000104010000000101"+"000001610100000008"+number(32))
	if rv != 0 {
		t.Fatalf("C_GenerateKey: %#x", rv)
	}
	key := binary.BigEndian.Uint64(out)
	c.wait(t)
	for i := range 3 {
		c.hsms[i].kill()
		if _, rv := app.call(29, "uMu", number(s)+"00001081ffffffff"+number(key)); rv != 0 {
			t.Fatalf("C_EncryptInit: %#x", rv)
		}
		if _, rv := app.call(30, "uayfy", number(s)+"0100000010"+strings.Repeat("00", 16)+"00000010"); rv != 0 {
			t.Fatalf("C_Encrypt with HSM %d dead: %#x", i+1, rv)
		}
		c.startAll(t)
		c.wait(t)
	}
}

// systemd's socket is there before the daemon and after it: an application that comes
// early waits.
func TestClientTakesSystemdsSocket(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 2)
	socket := c.path("activated")
	l, err := net.Listen("unix", socket)
	must(t, err)
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	must(t, err)
	early, err := net.Dial("unix", socket)
	must(t, err)
	early.Close()
	cmd := exec.Command("sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh", hsmbackup(t, false), "client", "--cluster", c.dir)
	var log output
	cmd.Dir, cmd.Env, cmd.SysProcAttr, cmd.ExtraFiles, cmd.Stderr = c.machine.dir, c.env, childAttributes(), []*os.File{f}, &log
	must(t, cmd.Start())
	defer cmd.Process.Kill()
	app := dialPeer(t, socket)
	app.openSession()
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, log.String())
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the daemon took systemd's socket away: %v", err)
	}
}

// The settings of CloudHSM's clients apply to the daemon.
func TestClientHonoursSDKSettings(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 2)
	must(t, os.WriteFile(c.path("cloudhsm_client.cfg"), []byte(`{"client":{"create_object_minimum_nodes":3}}`), 0o600))
	line := c.nobody().refused(t, 4, "min_copies", "client", "--socket", c.path("s"), "--cluster", c.dir, "--config", c.path("cloudhsm_client.cfg"))
	if !strings.Contains(line, "create_object_minimum_nodes") {
		t.Errorf("%s", line)
	}
	must(t, os.WriteFile(c.path("cloudhsm_client.cfg"), []byte(`{"client":{"create_object_minimum_nodes":1}}`), 0o600))
	_, socket := c.startClient(t, "--config", c.path("cloudhsm_client.cfg"))
	app := dialPeer(t, socket)
	s := app.openSession()
	c.hsms[0].kill()
	aes := "uMaA"
	template := "00000002" + "00000001010000000101" + "000001610100000008" + number(32)
	if _, rv := app.call(58, aes, number(s)+"00001080ffffffff"+template); rv != 0 {
		t.Errorf("C_GenerateKey on one of two HSMs under create_object_minimum_nodes 1: %#x", rv)
	}
}
