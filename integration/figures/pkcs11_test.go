//go:build linux

package figures

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/softhsm"
)

// pkcs11Threads are the threads of the application; pkcs11Time is how long each
// operation is measured in each round, in milliseconds.
var pkcs11Threads = []int{1, 4, 32}

const pkcs11Time = "400"

// pkcs11Rounds is how often each door is measured, in turn with the others. The table
// shows the median: what else a machine does at one moment would otherwise be counted
// against the door that is measured then.
const pkcs11Rounds = 5

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
// per second and, of one operation, the median and the 99th percentile in microseconds,
// each of the round with the median rate.
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
	table := map[int][]rates{}
	for _, threads := range pkcs11Threads {
		table[threads] = medianRates(doors, threads)
	}
	for _, name := range pkcs11Operations {
		for _, threads := range pkcs11Threads {
			fmt.Printf("%-16s %7d", name, threads)
			for _, of := range table[threads] {
				fmt.Printf(" | %-24s", shownRate(of[name]))
			}
			fmt.Println()
		}
	}
}

// medianRates measures the doors in turn, and returns for each the median rounds.
func medianRates(doors []door, threads int) []rates {
	rounds := make([][]rates, len(doors))
	for range pkcs11Rounds {
		for i, d := range doors {
			rounds[i] = append(rounds[i], d.run(threads))
		}
	}
	out := make([]rates, len(doors))
	for i := range doors {
		out[i] = rates{}
		for _, name := range pkcs11Operations {
			out[i][name] = medianRate(name, rounds[i])
		}
	}
	return out
}

// medianRate is what was printed for an operation in the round with the median rate; one
// that was refused in any round is refused.
func medianRate(name string, rounds []rates) string {
	speed := func(r rates) float64 {
		f, err := strconv.ParseFloat(strings.SplitN(r[name], " ", 2)[0], 64)
		if err != nil {
			return -1
		}
		return f
	}
	slices.SortFunc(rounds, func(a, b rates) int { return cmp.Compare(speed(a), speed(b)) })
	if speed(rounds[0]) < 0 {
		return rounds[0][name]
	}
	return rounds[len(rounds)/2][name]
}

// shownRate is "rate (median, p99 µs)".
func shownRate(rate string) string {
	words := strings.Fields(rate)
	if len(words) != 3 {
		return rate
	}
	return fmt.Sprintf("%s (%s, %s µs)", words[0], words[1], words[2])
}
