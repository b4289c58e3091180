package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/integration/pinned"
)

// step is one command of a document and the output shown below it.
type step struct {
	line    int
	command string
	output  []string
}

// consoleSteps extracts the commands of a document's console blocks: lines that
// begin with "$ ", continued by lines that begin with "> "; what follows is
// their output.
func consoleSteps(t *testing.T, document string) []step {
	t.Helper()
	var steps []step
	inside := false
	for i, line := range strings.Split(document, "\n") {
		command, isCommand := strings.CutPrefix(line, "$ ")
		more, isMore := strings.CutPrefix(line, "> ")
		switch last := len(steps) - 1; {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case isCommand:
			steps = append(steps, step{line: i + 1, command: command})
		case last < 0:
			t.Fatalf("line %d: output before any command", i+1)
		case isMore:
			steps[last].command += "\n" + more
		default:
			steps[last].output = append(steps[last].output, line)
		}
	}
	return steps
}

// varying are the parts of an output that differ from run to run. Their order
// matters.
var varying = []*regexp.Regexp{
	regexp.MustCompile(`\b(hsm|cluster)-[a-z2-7]{13}\b`),
	regexp.MustCompile(`\blineage-[0-9a-f]{32}\b`),
	regexp.MustCompile(`\bage1[0-9a-z]+`),
	regexp.MustCompile(`\b0x[0-9a-f]{16}\b`),
	regexp.MustCompile(`\b[0-9a-f]{64}\b|\b[0-9a-f]{16}\b`),
	regexp.MustCompile(`[0-9A-Za-z+/]{86,}={0,2}`),
	regexp.MustCompile(`\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}`),
	regexp.MustCompile(`127\.0\.0\.1:\d+`),
	regexp.MustCompile(`\b[0-9a-f]{6}\b`), // check values
	regexp.MustCompile(`\b\d+(\.\d+)? (B|KiB|MiB|GiB|bytes|s)\b`),
	regexp.MustCompile(`/\S*/tmp\.\w+`),
	regexp.MustCompile(`\b\d{3,}\b`),
	regexp.MustCompile(` +`),
}

// comparable replaces what varies by a dot, so that an output can be compared
// with that of another run.
func comparable(line string) string {
	line = strings.TrimRight(line, " ")
	for _, v := range varying {
		line = v.ReplaceAllString(line, "·")
	}
	return line
}

// mustLookLike compares an output with the one shown. A shown line "…" stands
// for any number of lines, and "…" within a line for any text.
func (s step) mustLookLike(t *testing.T, got string) {
	t.Helper()
	if len(s.output) == 0 {
		return
	}
	pattern := "^"
	for _, line := range s.output {
		if line == "…" {
			pattern += `(.*\n)*?`
			continue
		}
		pattern += strings.ReplaceAll(regexp.QuoteMeta(comparable(line)), "…", ".*") + `\n`
	}
	var lines strings.Builder
	for line := range strings.Lines(got) {
		fmt.Fprintln(&lines, comparable(strings.TrimSuffix(line, "\n")))
	}
	if !regexp.MustCompile(pattern + "$").MatchString(lines.String()) {
		t.Errorf("line %d: %s\nshown:\n%s\nprinted:\n%s", s.line, s.command, strings.Join(s.output, "\n"), got)
	}
}

// shell is a bash that runs one command after the other, as a reader of a
// document does, jobs in the background included.
type shell struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func newShell(ctx context.Context, t *testing.T, m *machine) *shell {
	t.Helper()
	cmd := exec.CommandContext(ctx, "bash", "--norc", "--noprofile")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = repository(), m.env, childAttributes()
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		eventually(t, "processes of the document have not ended", func() bool {
			return !worksBelow(filepath.Join(filepath.Dir(m.dir), "tmp")) && !groupWorks(cmd.Process.Pid)
		})
	})
	return &shell{in, bufio.NewReader(out)}
}

// worksBelow tells whether a process works in a folder or below. One that was killed may
// still be making a file.
func worksBelow(folder string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cwd")
	return slices.ContainsFunc(all, func(path string) bool {
		cwd, err := os.Readlink(path)
		return err == nil && strings.HasPrefix(cwd, folder+"/")
	})
}

// groupWorks tells whether a process of a group has not ended, wherever it works: nobody may
// have asked yet how those ended that have.
func groupWorks(group int) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	return slices.ContainsFunc(all, func(path string) bool {
		stat, err := os.ReadFile(path)
		_, rest, found := strings.Cut(string(stat), ") ") // after the name: state, parent, group
		words := strings.Fields(rest)
		return err == nil && found && len(words) > 2 && words[2] == strconv.Itoa(group) && words[0] != "Z" && words[0] != "X"
	})
}

// run runs a command and returns what it printed and its exit code.
func (s *shell) run(t *testing.T, command string) (string, string) {
	t.Helper()
	const mark = "--the-command-has-ended--"
	fmt.Fprintf(s.in, "%s\necho %s $?\n", command, mark)
	var printed strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		before, code, ended := strings.Cut(line, mark+" ")
		printed.WriteString(before)
		if ended {
			return printed.String(), strings.TrimSpace(code)
		}
		if err != nil {
			t.Fatalf("the shell ended in %s:\n%s", command, printed.String())
		}
	}
}

// TestReadme runs every console block of the README from top to bottom in one
// shell, as it stands, and compares what is printed with what is shown. Only the
// port of the object store is another one, because the test does not own the
// one shown.
func TestReadme(t *testing.T) {
	t.Parallel()
	if _, err := miniotest.Binary(); err != nil { // says so while it builds
		t.Fatal(err)
	}
	runDocument(t, "README.md", 10, "127.0.0.1:9000", pinned.FreeAddress(t))
}

// runDocument runs a document that has at least so many commands, with one text of
// them replaced by another.
func runDocument(t *testing.T, path string, least int, old, new string) {
	t.Helper()
	steps := consoleSteps(t, read(t, filepath.Join(repository(), path)))
	if len(steps) < least {
		t.Fatalf("%s has only %d commands", path, len(steps))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*deadline)
	defer cancel()
	m := newMachine(t).with(goEnvironment(t)...)
	sh := newShell(ctx, t, m)
	for _, s := range steps {
		command := s.command
		if old != "" {
			command = strings.ReplaceAll(command, old, new)
		}
		printed, code := sh.run(t, command)
		if code != "0" {
			t.Fatalf("%s line %d: %s: exit code %s:\n%s", path, s.line, s.command, code, printed)
		}
		s.mustLookLike(t, printed)
	}
}

// goEnvironment lets the go command find its caches, although the home folder is
// another one.
func goEnvironment(t *testing.T) []string {
	t.Helper()
	var env []string
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOFLAGS", "GOTOOLCHAIN"} {
		out, err := exec.Command("go", "env", name).Output()
		must(t, err)
		env = append(env, name+"="+strings.TrimSpace(string(out)))
	}
	// The checkout may belong to another user than the one who tests.
	return append(env, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
}

// TestLinksLeadSomewhere follows the links of the documents inside the
// repository.
func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, document := range []string{"README.md", "SECURITY.md", "cluster/pkcs11/README.md"} {
		for _, m := range link.FindAllStringSubmatch(read(t, filepath.Join(repository(), document)), -1) {
			if _, err := os.Stat(filepath.Join(repository(), filepath.Dir(document), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", document, m[1], err)
			}
		}
	}
}
