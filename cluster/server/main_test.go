package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// TestMain lets the test binary stand for the program: it is an HSM process when
// it is called as one, and a cluster creation that kills itself.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "hsm" && os.Args[2] == "serve" {
		os.Exit(serveForTest(os.Args[3]))
	}
	if dir := os.Getenv(createDir); dir != "" {
		os.Exit(createForTest(dir))
	}
	if dir := os.Getenv(fleetDir); dir != "" {
		os.Exit(fleetForTest(dir))
	}
	fillableDisks()
	os.Exit(m.Run())
}

// fleetDir is the environment of a process that starts a fleet and waits to be
// killed.
const fleetDir = "SERVER_TEST_FLEET_DIR"

func fleetForTest(dir string) int {
	p, err := profile.Load(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Unsetenv(fleetDir)
	started := make(chan error, 1)
	go func() {
		// The thread that calls ends with its goroutine.
		runtime.LockOSThread()
		_, err := StartFleet(context.Background(), os.Args[0], p, os.Stderr)
		started <- err
	}()
	if err := <-started; err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("fleet ready")
	time.Sleep(time.Hour)
	return 0
}

// serveForTest is what "hsmbackup hsm serve FOLDER" does. A file in the folder
// makes it misbehave.
func serveForTest(folder string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if _, err := os.Stat(filepath.Join(folder, "talks-nonsense")); err == nil {
		fmt.Println("hello")
		<-ctx.Done()
		return 0
	}
	var s *Server
	ready := func() { fmt.Println("ready:", s.Address()) }
	s, err := Open(ctx, folder, Options{SyncInterval: testInterval, Ready: ready, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Iterations: testIterations})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Close()
	fmt.Fprintln(os.Stderr, "serving", s.Config().Name)
	if err := s.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// The environment of a creation that kills itself.
const (
	createDir  = "SERVER_TEST_CREATE_DIR"
	createDies = "SERVER_TEST_CREATE_DIES" // "seal N", "fill", or a duration
)

func createForTest(dir string) int {
	spec := newSpec(dir, 3)
	dies := os.Getenv(createDies)
	var n int
	if _, err := fmt.Sscanf(dies, "seal %d", &n); err == nil {
		spec.Seal = func(folder string) (seal.Seal, error) {
			if n--; n < 0 {
				killSelf()
			}
			return seal.NewFile(folder)
		}
	} else if dies == "fill" {
		keyring, ca := testLineage()
		spec.Keyring, spec.CA = keyring, ca
		spec.Fill = func(context.Context, hsm.Session) error { killSelf(); return nil }
	} else if ms, err := strconv.Atoi(dies); err == nil {
		time.AfterFunc(time.Duration(ms)*time.Millisecond, killSelf)
	}
	if _, err := Create(context.Background(), spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func killSelf() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func readCert(folder string) ([]byte, error) { return os.ReadFile(filepath.Join(folder, certFile)) }
