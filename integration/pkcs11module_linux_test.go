package integration

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/moduletest"
)

// moduleWorld is a cluster of three HSM processes, the daemon in front of it, and our
// PKCS #11 module with its test program.
type moduleWorld struct {
	*testCluster
	daemon *process
	socket string
	dir    string // of module and program
}

func newModuleWorld(t *testing.T) *moduleWorld {
	t.Helper()
	w := &moduleWorld{testCluster: newCluster(t, newMachine(t), "east", 3), dir: t.TempDir()}
	w.socket = w.path("module-daemon")
	cmd := exec.Command("make", "-s", "-C", "cluster/pkcs11/module", "OUT="+w.dir, "module", w.dir+"/moduletest")
	cmd.Dir = repository()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make: %v (make packages installs the compiler)\n%s", err, out)
	}
	w.startDaemon(t)
	return w
}

func (w *moduleWorld) startDaemon(t *testing.T) {
	t.Helper()
	w.daemon = w.start(t, "client", "--verbose", "--socket", w.socket, "--cluster", w.testCluster.dir)
	w.daemon.waitReady(t)
}

// application is a run of the test program, with alice's PIN.
func (w *moduleWorld) application(t *testing.T, mode string, wrapper ...string) *exec.Cmd {
	t.Helper()
	words := append(wrapper, filepath.Join(w.dir, "moduletest"), filepath.Join(w.dir, "libhsmbackup-pkcs11.so"), alicePIN, mode)
	c := exec.CommandContext(t.Context(), words[0], words[1:]...)
	c.Env = append(os.Environ(), "HSMBACKUP_PKCS11_SOCKET="+w.socket)
	return c
}

func TestModule(t *testing.T) {
	w := newModuleWorld(t)
	for _, mode := range []string{"general", "keys", "own", "pairs", "threads", "fork"} {
		t.Run(mode, func(t *testing.T) {
			if out, err := w.application(t, mode).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
	t.Run("valgrind", func(t *testing.T) {
		for _, mode := range []string{"own", "pairs"} {
			c := w.application(t, mode, "valgrind", "-q", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect,possible", "--error-exitcode=9")
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v (make packages installs valgrind)\n%s", mode, err, out)
			}
		}
	})
	t.Run("travel together", w.pairs)
	t.Run("stock", w.stockClients)
	t.Run("page", w.page)
	t.Run("killed", w.applicationKilled)
	t.Run("attacked", w.attacked)
	t.Run("stopped", w.daemonStopped)
	t.Run("restart", w.daemonRestarted)
}

// page runs the commands of the module's page, among them the tests of crypto11 and
// miekg/pkcs11, which are a module of their own.
func (w *moduleWorld) page(t *testing.T) {
	if err := exec.Command("/usr/bin/python3", "-c", "import PyKCS11").Run(); err != nil {
		t.Fatalf("no PyKCS11: make packages installs it: %v", err)
	}
	fetch := exec.CommandContext(t.Context(), "go", "mod", "download") // says what it fetches, which the page does not show
	fetch.Dir, fetch.Env = filepath.Join(repository(), "integration", "gopkcs11"), w.with(goEnvironment(t)...).env
	if out, err := fetch.CombinedOutput(); err != nil {
		t.Fatalf("go mod download: %v\n%s", err, out)
	}
	const path = "cluster/pkcs11/module/README.md"
	steps := consoleSteps(t, read(t, filepath.Join(repository(), path)))
	ctx, cancel := context.WithTimeout(t.Context(), 4*deadline)
	defer cancel()
	sh := newShell(ctx, t, w.with(goEnvironment(t)...).with("HSMBACKUP_PKCS11_SOCKET="+w.socket, "PIN="+alicePIN))
	for _, s := range steps {
		printed, code := sh.run(t, s.command)
		if code != "0" {
			t.Fatalf("%s line %d: %s: exit code %s:\n%s", path, s.line, s.command, code, printed)
		}
		s.mustLookLike(t, printed)
	}
	if len(steps) < 6 {
		t.Errorf("%s has only %d commands", path, len(steps))
	}
}

// stockClients runs what they pass on through p11-kit's client of the distribution, and
// through those of other versions that HSMBACKUP_P11KIT_CLIENTS names, with colons
// between: p11-kit changed its encodings over the versions.
func (w *moduleWorld) stockClients(t *testing.T) {
	clients := []string{stockModule}
	if more := os.Getenv("HSMBACKUP_P11KIT_CLIENTS"); more != "" {
		clients = append(clients, strings.Split(more, ":")...)
	}
	for _, client := range clients {
		for _, mode := range []string{"keys", "threads", "fork"} {
			c := exec.CommandContext(t.Context(), filepath.Join(w.dir, "moduletest"), client, alicePIN, mode)
			// A client that is not installed finds the libraries it was built with beside it.
			c.Env = append(os.Environ(), "P11_KIT_SERVER_ADDRESS=unix:path="+w.socket, "LD_LIBRARY_PATH="+filepath.Dir(client))
			if out, err := c.CombinedOutput(); err != nil {
				t.Errorf("%s, %s: %v\n%s", client, mode, err, out)
			}
		}
	}
}

// applicationKilled ends an application that is logged in and has a session key: the
// daemon sees it end.
func (w *moduleWorld) applicationKilled(t *testing.T) {
	c := w.application(t, "wait")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("said %q, %v", line, err)
	}
	ends := func() int { return strings.Count(w.daemon.stderr.String(), `msg="application ended"`) }
	before := ends()
	c.Process.Kill()
	c.Wait()
	eventually(t, "the end of the application", func() bool { return ends() > before })
}

// daemonRestarted kills the daemon under a connected application, again and again.
func (w *moduleWorld) daemonRestarted(t *testing.T) {
	up, down := func() { w.startDaemon(t) }, func() { w.daemon.kill() }
	again := func() { down(); up() }
	moduletest.Converse(t, w.application(t, "restart"), "restart", again, again, down, up)
}

// daemonStopped stops the daemon under an application with a bound for its calls.
func (w *moduleWorld) daemonStopped(t *testing.T) {
	signal := func(s syscall.Signal) func() {
		return func() {
			if err := w.daemon.cmd.Process.Signal(s); err != nil {
				t.Error(err)
			}
		}
	}
	c := w.application(t, "stopped")
	c.Env = append(c.Env, "HSMBACKUP_PKCS11_TIMEOUT=10") // a login takes a part of a second, and seconds on a busy machine
	stop, resume := signal(syscall.SIGSTOP), signal(syscall.SIGCONT)
	moduletest.Converse(t, c, "stopped", stop, resume, stop, resume)
}
