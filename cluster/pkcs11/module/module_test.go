//go:build linux

package module

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/moduletest"
	"github.com/hsmbackup/hsmbackup/integration/softhsm"
)

// sanitizers is how the module is built where memory is judged; threads are judged
// by theirs.
const sanitizers = "address,undefined"

// Children of an application with threads are not tried here but against the daemon:
// sanitizers do not survive a fork beside other threads (their allocator's locks stay
// taken in the child), and SoftHSM, of which the stock server starts one for each
// connection, now and then finds no token while others start.
func TestAgainstStockServer(t *testing.T) {
	socket := softhsm.Start(t)
	for _, mode := range []string{"general", "keys", "pairs", "threads"} {
		t.Run(mode, func(t *testing.T) { run(t, build(t, sanitizers), socket, mode) })
	}
}

func TestThreadsAreInOrder(t *testing.T) {
	run(t, build(t, "thread"), softhsm.Start(t), "threads")
}

func TestNothingLeaks(t *testing.T) {
	if _, err := exec.LookPath("valgrind"); err != nil {
		t.Fatal("no valgrind: make packages installs it")
	}
	run(t, build(t, ""), softhsm.Start(t), "keys", "valgrind", "-q", "--leak-check=full", "--show-leak-kinds=all", "--errors-for-leak-kinds=definite,indirect,possible", "--error-exitcode=9")
}

func TestApplicationSurvivesTheDaemon(t *testing.T) {
	p := &proxy{server: softhsm.Start(t), socket: filepath.Join(t.TempDir(), "daemon")}
	p.up(t)
	c, _ := command(t, build(t, sanitizers), p.socket, "restart")
	up, again := func() { p.up(t) }, func() { p.down(); p.up(t) }
	moduletest.Converse(t, c, "restart", again, again, p.down, up)
}

// TestDaemonHangs stops the server as a signal stops it: the socket is there, and
// takes what its queues hold, and nobody answers.
func TestDaemonHangs(t *testing.T) {
	for _, san := range []string{sanitizers, "thread"} {
		t.Run(san, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			server := softhsm.StartServer(t)
			c, _ := command(t, build(t, san), server.Socket, "stopped")
			c.Env = append(c.Env, "HSMBACKUP_PKCS11_TIMEOUT=5") // more than an answer takes on a busy machine
			stop, resume := func() { server.Signal(t, syscall.SIGSTOP) }, func() { server.Signal(t, syscall.SIGCONT) }
			moduletest.Converse(t, c, "stopped", stop, resume, stop, resume)
		})
	}
}

// offsets prints the sizes of structures and the places of functions in their lists.
const offsets = `
#include HEADER
#include <stddef.h>
#include <stdio.h>
#define SIZE(type) printf(#type " %zu\n", sizeof(type))
#define PLACE(type, field) printf(#type "." #field " %zu\n", offsetof(type, field))
int main(void)
{
	SIZE(CK_INFO); SIZE(CK_SLOT_INFO); SIZE(CK_TOKEN_INFO); SIZE(CK_SESSION_INFO); SIZE(CK_MECHANISM_INFO); SIZE(CK_ATTRIBUTE);
	SIZE(CK_MECHANISM); SIZE(CK_C_INITIALIZE_ARGS); SIZE(CK_FUNCTION_LIST); SIZE(CK_RSA_PKCS_PSS_PARAMS); SIZE(CK_RSA_PKCS_OAEP_PARAMS);
	PLACE(CK_C_INITIALIZE_ARGS, flags); PLACE(CK_ATTRIBUTE, ulValueLen); PLACE(CK_MECHANISM, pParameter);
	PLACES
	printf("%lx %lx %lx %lx\n", (long)CKM_AES_GCM, (long)CKM_ECDSA_SHA256, (long)CKA_ALLOWED_MECHANISMS, (long)CKR_USER_NOT_LOGGED_IN);
	return 0;
}
`

// TestHeaderIsPKCS11 compares our header with the one that p11-kit installs.
func TestHeaderIsPKCS11(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "offsets.c")
	if err := os.WriteFile(source, []byte(strings.Replace(offsets, "PLACES", places(t), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	print := func(name string, flags ...string) string {
		program := filepath.Join(dir, name)
		if out, err := exec.Command("cc", append(flags, "-o", program, source)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v (make packages installs libp11-kit-dev)\n%s", name, err, out)
		}
		out, err := exec.Command(program).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	ours := print("ours", `-DHEADER="cryptoki.h"`, "-Isrc")
	theirs := print("theirs", `-DHEADER="p11-kit/pkcs11.h"`, "-DCRYPTOKI_COMPAT", "-I/usr/include/p11-kit-1")
	if ours != theirs {
		t.Errorf("our header says\n%s\nand p11-kit's\n%s", ours, theirs)
	}
}

// places are the functions of version 2.40.
func places(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("gen/functions.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 2 && words[0] == "2.40" {
			name, _, _ := strings.Cut(words[2], "(")
			out = append(out, "PLACE(CK_FUNCTION_LIST, "+name+");")
		}
	}
	if len(out) != 68 {
		t.Fatalf("%d functions", len(out))
	}
	return strings.Join(out, "\n\t")
}

// TestOnlyPKCS11IsExported looks at the names the module gives an application.
func TestOnlyPKCS11IsExported(t *testing.T) {
	out, err := exec.Command("nm", "-D", "--defined-only", filepath.Join(build(t, ""), "libhsmbackup-pkcs11.so")).Output()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		if !strings.HasPrefix(words[len(words)-1], "C_") {
			t.Errorf("exported: %s", line)
		}
		n++
	}
	if n != 104 {
		t.Errorf("%d functions, want 104", n)
	}
}
