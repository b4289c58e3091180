package clone

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// The test binary stands for the program: called as one, it is an HSM process.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "hsm" && os.Args[2] == "serve" {
		os.Exit(serveForTest(os.Args[3]))
	}
	os.Exit(m.Run())
}

const (
	testInterval   = 50 * time.Millisecond // of server-side sync
	testIterations = 2                     // of PBKDF2
)

func serverOptions() server.Options {
	return server.Options{SyncInterval: testInterval, Iterations: testIterations, SealEnvelope: backup.SealEnvelope, Log: slog.New(slog.DiscardHandler)}
}

func serveForTest(folder string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := server.Open(ctx, folder, serverOptions())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Close()
	fmt.Println("ready:", s.Address())
	if err := s.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
