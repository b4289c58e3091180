// Package moduletest talks with the test program of the PKCS #11 module
// (cluster/pkcs11/module/test).
package moduletest

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"testing"
)

// Converse runs the program in a mode in which it says "ready" when something is to
// happen to its daemon, and waits until it has: each step in turn. It has to say
// "ok MODE" then.
func Converse(t *testing.T, c *exec.Cmd, mode string, steps ...func()) {
	t.Helper()
	var stderr bytes.Buffer
	c.Stderr = &stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	for i, step := range steps {
		if !said.Scan() || said.Text() != "ready" {
			t.Fatalf("step %d: said %q, %v\n%s", i, said.Text(), c.Wait(), stderr.String())
		}
		step()
		io.WriteString(in, "go\n")
	}
	said.Scan()
	if err := c.Wait(); err != nil || said.Text() != "ok "+mode {
		t.Fatalf("said %q, %v\n%s", said.Text(), err, stderr.String())
	}
}
