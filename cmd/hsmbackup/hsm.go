package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

func (p *program) hsmCommand() *cli.Command {
	return &cli.Command{Name: "hsm", Usage: "single HSMs", Subcommands: []*cli.Command{
		{
			Name: "serve", Usage: "run one HSM in the foreground", ArgsUsage: "DIR", Action: p.serve,
			Description: "Example: hsmbackup hsm serve ./east/hsm-1 --metrics :9100\n\nPrints one line when it is ready.",
			Flags:       []cli.Flag{metricsFlag("")},
		},
		withApproval(p.inviteCommand()), p.joinCommand(), p.removeCommand(), p.renewCommand(),
	}}
}

// metricsFlag asks a process that runs for long to show how it fares. It has no
// default: nothing listens unasked.
func metricsFlag(more string) cli.Flag {
	return &cli.StringFlag{Name: "metrics", Usage: "show /metrics, /healthz and /readyz at `HOST:PORT`; :PORT is this machine only" + more}
}

// metricsAddress reads the flag.
func metricsAddress(cc *cli.Context) (string, error) {
	address := cc.String("metrics")
	if !cc.IsSet("metrics") {
		return "", nil
	}
	if err := metrics.CheckAddress(address); err != nil {
		return "", usagef("--metrics: %v", err)
	}
	return address, nil
}

func (p *program) serve(cc *cli.Context) error {
	folder := cc.Args().First()
	if folder == "" {
		return usagef("which folder?")
	}
	address, err := metricsAddress(cc)
	if err != nil {
		return err
	}
	quietenMonitor(p.log)
	return p.serveFolder(cc.Context, folder, address)
}

func (p *program) serveFolder(ctx context.Context, folder, metrics string) error {
	debug.SetMemoryLimit(math.MaxInt64)
	collectRarely()
	p.guardMemory()
	var s *server.Server
	ready := func() {
		c := s.Config()
		fmt.Fprintf(p.out, "ready: %s %s of cluster %s at %s%s\n", c.Name, c.ID, c.ClusterName, s.Address(), shownAt(s.MetricsAddress()))
	}
	s, err := server.Open(ctx, folder, server.Options{
		Version: version(), SealEnvelope: backup.SealEnvelope, OpenSeal: p.openSeal, Log: p.log, Metrics: metrics, Ready: ready,
	})
	if err != nil {
		return err
	}
	err = s.Serve(ctx)
	if closeErr := s.Close(); err == nil {
		err = closeErr
	}
	return err
}

func shownAt(address string) string {
	if address == "" {
		return ""
	}
	return ", metrics at http://" + address + "/metrics"
}

// openSeal opens the seal that an HSM's configuration names.
func (p *program) openSeal(kind, folder string) (seal.Seal, error) {
	switch kind {
	case "file":
		return seal.OpenFile(folder)
	case "identity":
		path := os.Getenv("HSMBACKUP_SEAL_IDENTITY")
		if path == "" {
			return seal.Seal{}, usagef("the HSM is sealed with an identity: set HSMBACKUP_SEAL_IDENTITY to its file")
		}
		return seal.OpenIdentity(path)
	case "passphrase":
		pass, err := p.sealPassphrase()
		if err != nil {
			return seal.Seal{}, err
		}
		return seal.Passphrase(pass, 0)
	}
	return seal.Seal{}, fmt.Errorf("%w: seal %q: want file, identity or passphrase", hsm.ErrInvalid, kind)
}

func (p *program) sealPassphrase() (hsm.Secret, error) {
	if v := os.Getenv("HSMBACKUP_SEAL_PASSPHRASE"); v != "" {
		return hsm.NewSecret([]byte(v)), nil
	}
	fd, ok := p.terminal()
	if !ok {
		return hsm.Secret{}, usagef("the HSM is sealed with a passphrase: set HSMBACKUP_SEAL_PASSPHRASE, or run on a terminal")
	}
	return p.promptSecret(fd, "seal passphrase: ")
}

// newSeal makes the seal of a new HSM's folder.
func (p *program) newSeal(kind string) func(folder string) (seal.Seal, error) {
	return func(folder string) (seal.Seal, error) {
		if kind == "file" {
			return seal.NewFile(folder)
		}
		return p.openSeal(kind, folder)
	}
}
