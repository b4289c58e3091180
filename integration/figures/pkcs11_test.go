//go:build linux

package figures

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/softhsm"
)

// pkcs11Threads are the threads of the application; pkcs11Time is how long each
// operation is measured, in milliseconds.
var pkcs11Threads = []int{1, 4, 32}

const pkcs11Time = "1500"

// stockClients is where distributions put p11-kit's client module.
var stockClients = []string{"/usr/lib/*/pkcs11/p11-kit-client.so", "/usr/lib64/pkcs11/p11-kit-client.so", "/usr/lib/pkcs11/p11-kit-client.so"}

func stockClient(tb testing.TB) string {
	tb.Helper()
	for _, pattern := range stockClients {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	tb.Fatal("no p11-kit-client.so: make packages installs it")
	return ""
}

// pkcs11Programs builds the module and the program that measures.
func pkcs11Programs(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	cmd := exec.Command("make", "-s", "-C", "../../cluster/pkcs11/module", "OUT="+dir, "module", dir+"/modulebench")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("make: %v\n%s", err, out)
	}
	return dir
}

// pkcs11Daemon serves a cluster of three HSM processes to alice.
func pkcs11Daemon(tb testing.TB) (socket string) {
	tb.Helper()
	dir := tb.TempDir()
	alice(tb, start(tb, spec(dir)))
	socket = filepath.Join(tb.TempDir(), "daemon")
	cmd := exec.Command(mustBinary(tb), "client", "--socket", socket, "--cluster", dir)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if tb.Failed() {
			tb.Logf("daemon: %s", log.String())
		}
	})
	softhsm.Await(tb, socket)
	return socket
}

// rates is what a program printed for one number of threads: by operation, "rate
// median p99" or "refused".
type rates map[string]string

func readRates(tb testing.TB, from io.Reader) rates {
	tb.Helper()
	out := rates{}
	for lines := bufio.NewScanner(from); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), " ")
		out[name] = rest
	}
	if len(out) != len(pkcs11Operations) {
		tb.Fatalf("measured %v, want %v", out, pkcs11Operations)
	}
	return out
}

// door is one way to keys: how an application reaches them with a number of threads.
type door struct {
	name string
	run  func(threads int) rates
}

func throughModule(tb testing.TB, name, program, module, variable, address, pin string) door {
	return door{name, func(threads int) rates {
		cmd := exec.Command(program, module, pin, fmt.Sprint(threads), pkcs11Time)
		cmd.Env = append(os.Environ(), variable+"="+address)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil {
			tb.Fatalf("%s: %v\n%s", name, err, errOut.String())
		}
		return readRates(tb, bytes.NewReader(out))
	}}
}

var pkcs11Operations = []string{"round-trip", "rsa-2048-sign", "p256-sign", "aes-gcm-1k", "aes-ecb-1k", "hmac-sha256-1k", "aes-make", "p256-make"}

// BenchmarkPKCS11 prints one table: per operation and number of threads the operations
// per second and, of one operation, the median and the 99th percentile in microseconds.
func BenchmarkPKCS11(b *testing.B) {
	programs, daemon, soft := pkcs11Programs(b), pkcs11Daemon(b), softhsm.Start(b)
	program := filepath.Join(programs, "modulebench")
	doors := []door{
		throughModule(b, "A p11-kit-client", program, stockClient(b), "P11_KIT_SERVER_ADDRESS", "unix:path="+daemon, "alice:wonderland"),
		throughModule(b, "B our module", program, filepath.Join(programs, "libhsmbackup-pkcs11.so"), "HSMBACKUP_PKCS11_SOCKET", daemon, "alice:wonderland"),
		throughModule(b, "SoftHSM2", program, stockClient(b), "P11_KIT_SERVER_ADDRESS", "unix:path="+soft, softhsm.PIN),
		{"Go alone", func(threads int) rates { return goRates(b, threads) }},
	}
	for b.Loop() {
		printRates(doors)
	}
}

func printRates(doors []door) {
	fmt.Printf("\n%-16s %7s", "operations/s", "threads")
	for _, d := range doors {
		fmt.Printf(" | %-24s", d.name)
	}
	fmt.Println()
	table := map[string]map[int][]string{}
	for _, threads := range pkcs11Threads {
		for _, d := range doors {
			for name, rate := range d.run(threads) {
				if table[name] == nil {
					table[name] = map[int][]string{}
				}
				table[name][threads] = append(table[name][threads], rate)
			}
		}
	}
	for _, name := range pkcs11Operations {
		for _, threads := range pkcs11Threads {
			fmt.Printf("%-16s %7d", name, threads)
			for _, rate := range table[name][threads] {
				fmt.Printf(" | %-24s", shownRate(rate))
			}
			fmt.Println()
		}
	}
}

// shownRate is "rate (median, p99 µs)".
func shownRate(rate string) string {
	words := strings.Fields(rate)
	if len(words) != 3 {
		return rate
	}
	return fmt.Sprintf("%s (%s, %s µs)", words[0], words[1], words[2])
}
