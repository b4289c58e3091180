package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// deadline ends what hangs. No test measures time.
const deadline = 5 * time.Minute

// machine is where commands run: a folder and an environment of its own, with
// nothing of the user's.
type machine struct {
	dir  string
	env  []string
	race bool            // the program has the race detector
	wrap func(*exec.Cmd) // may change how the program is run
}

// newRaceMachine is a machine whose programs have the race detector, if the
// tests have it. It is for tests of what happens at once; hashing a password
// takes the detector as long as everything else together.
func newRaceMachine(t testing.TB) *machine {
	t.Helper()
	m := newMachine(t)
	m.race = raceEnabled
	return m
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{dir: dir}
	for _, sub := range []string{"home", "tmp", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m.dir = filepath.Join(dir, "work")
	m.env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8",
		"HOME=" + filepath.Join(dir, "home"), "XDG_CONFIG_HOME=" + filepath.Join(dir, "home", "config"), "XDG_CACHE_HOME=" + filepath.Join(dir, "home", "cache"),
		"TMPDIR=" + filepath.Join(dir, "tmp"), "AWS_EC2_METADATA_DISABLED=true",
		"GORACE=atexit_sleep_ms=10", // 1000 by default, at the end of every command
	}
	return m
}

// with returns the same machine with more in its environment; later values win.
func (m *machine) with(env ...string) *machine {
	c := *m
	c.env = append(slices.Clone(m.env), env...)
	return &c
}

// as returns the machine with a login in its environment.
func (m *machine) as(role, pin string) *machine {
	return m.with("HSMBACKUP_ROLE="+role, "HSMBACKUP_PIN="+pin)
}

// path returns a path inside the machine's folder.
func (m *machine) path(elements ...string) string {
	return filepath.Join(append([]string{m.dir}, elements...)...)
}

// result is what a command left.
type result struct {
	args           []string
	code           int // -1: killed by a signal
	stdout, stderr string
}

func (r result) String() string {
	return "hsmbackup " + strings.Join(r.args, " ") + "\nstdout: " + r.stdout + "\nstderr: " + r.stderr
}

func (m *machine) command(ctx context.Context, t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, hsmbackup(t, m.race), args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = m.dir, m.env, childAttributes()
	if m.wrap != nil {
		m.wrap(cmd)
	}
	return cmd
}

// run runs the program to its end.
func (m *machine) run(t testing.TB, args ...string) result {
	t.Helper()
	return m.runWith(t, "", args...)
}

// runWith runs the program with something on its standard input.
func (m *machine) runWith(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	cmd := m.command(ctx, t, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	r := result{args: args, code: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: errOut.String()}
	if ctx.Err() != nil {
		t.Fatalf("hangs: %v", r)
	}
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	noRace(t, r.stderr)
	return r
}

// noRace fails the test if a process reported a data race.
func noRace(t testing.TB, stderr string) {
	t.Helper()
	if strings.Contains(stderr, "WARNING: DATA RACE") || strings.Contains(stderr, "panic:") {
		t.Errorf("a process reports:\n%s", stderr)
	}
}

// ok runs the program, demands success and returns what it printed.
func (m *machine) ok(t testing.TB, args ...string) string {
	t.Helper()
	r := m.run(t, args...)
	if r.code != 0 {
		t.Fatalf("exit code %d: %v", r.code, r)
	}
	return r.stdout
}

// json runs the program with --json, demands success and decodes what it printed.
func (m *machine) json(t testing.TB, into any, args ...string) {
	t.Helper()
	decode(t, m.ok(t, append(args, "--json")...), into)
}

// decode reads one JSON document, and nothing after it.
func decode(t testing.TB, text string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	if err := d.Decode(into); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Fatalf("more than one JSON document:\n%s", text)
	}
}

// refused runs the program twice, plainly and with --json, and demands that it
// fails with the exit code and the error code: one line, a hint line, and
// nothing else; or one JSON document. Several error codes, with spaces between,
// are alternatives. It returns the line.
func (m *machine) refused(t testing.TB, exit int, code string, args ...string) string {
	t.Helper()
	return m.refusedWith(t, "", exit, code, args...)
}

func (m *machine) refusedWith(t testing.TB, stdin string, exit int, code string, args ...string) string {
	t.Helper()
	plain := m.runWith(t, stdin, args...)
	lines := strings.Split(strings.TrimSuffix(plain.stderr, "\n"), "\n")
	if plain.code != exit || plain.stdout != "" {
		t.Errorf("exit code %d, want %d, and nothing on stdout: %v", plain.code, exit, plain)
	}
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "hsmbackup: ") || !strings.HasPrefix(lines[1], "hint: ") || len(lines[1]) < len("hint: ")+5 {
		t.Errorf("want one line and a hint line: %v", plain)
	}
	asJSON := m.runWith(t, stdin, append(args, "--json")...)
	var doc struct {
		Error struct{ Code, Message, Hint string }
	}
	decode(t, asJSON.stdout, &doc)
	if asJSON.code != exit || !slices.Contains(strings.Fields(code), doc.Error.Code) || doc.Error.Message == "" || doc.Error.Hint == "" {
		t.Errorf("with --json: exit code %d, want %d, error code %q: %v", asJSON.code, exit, code, asJSON)
	}
	return lines[0]
}

// process is a program that runs in the background.
type process struct {
	cmd    *exec.Cmd
	stderr output
	ready  chan string   // receives the first line of stdout
	done   chan struct{} // closed when it has ended
}

// start starts the program in the background. It is killed when the test ends.
func (m *machine) start(t testing.TB, args ...string) *process {
	t.Helper()
	p := &process{cmd: m.command(context.Background(), t, args...), ready: make(chan string, 1), done: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r := bufio.NewReader(out)
		line, _ := r.ReadString('\n')
		p.ready <- line
		io.Copy(io.Discard, r)
		p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() { p.kill(); noRace(t, p.stderr.String()) })
	return p
}

// waitReady waits for the line that says so.
func (p *process) waitReady(t testing.TB) {
	t.Helper()
	select {
	case line := <-p.ready:
		if !strings.HasPrefix(line, "ready: ") {
			t.Fatalf("%v did not become ready: %q %s", p.cmd.Args, line, p.stderr.String())
		}
	case <-time.After(deadline):
		t.Fatalf("%v is not ready: %s", p.cmd.Args, p.stderr.String())
	}
}

// kill kills the process and its children without warning.
func (p *process) kill() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// alive tells whether the process has not ended.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// output collects what a process says.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
