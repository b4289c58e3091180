// Command hsmbackup runs clusters of software HSMs, backs them up, restores
// clones of them, and reconciles keys between clones.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	_ = harden() // hsm serve says so where it cannot be done
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
