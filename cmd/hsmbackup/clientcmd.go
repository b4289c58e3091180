package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

func (p *program) clientCommand() *cli.Command {
	return &cli.Command{
		Name: "client", Usage: "the daemon behind which applications of this machine use clusters through PKCS #11", Action: p.client,
		Description: "Example: hsmbackup client --socket /run/hsmbackup/pkcs11 --cluster ./east\n\n" +
			"Applications load p11-kit-client.so with P11_KIT_SERVER_ADDRESS=unix:path=SOCKET. Each cluster is a slot; the PIN is USER:PASSWORD.\n" +
			"Only the user the daemon runs as may connect, and root. systemd may hand the socket over (LISTEN_FDS). SIGHUP goes on as the program on disk, with all sockets open.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "listen at this `PATH`; not needed with a socket of systemd's"},
			&cli.StringSliceFlag{Name: "cluster", Aliases: []string{"c"}, EnvVars: []string{"HSMBACKUP_CLUSTER"}, Usage: "`CLUSTER` to serve, one slot each, in this order: a name from the configuration file, or the path of a profile"},
			&cli.StringFlag{Name: "config", Aliases: []string{"sdk-config"}, EnvVars: []string{"HSMBACKUP_SDK_CONFIG"}, Usage: "the durability policy of this CloudHSM configuration `FILE` applies: cloudhsm_client.cfg (Client SDK 3) or cloudhsm-pkcs11.cfg (Client SDK 5)"},
			&cli.StringFlag{Name: "component", Usage: "the same, of the file of pkcs11, dyn, jce, cli, ksp or openssl-provider in its usual place"},
			&cli.IntFlag{Name: "max-applications", Value: 4096, Usage: "connections served at once"},
			&cli.BoolFlag{Name: "verbose", Usage: "log every application and refused call"},
			metricsFlag(""),
		},
	}
}

func (p *program) client(cc *cli.Context) error {
	if p.sdk.path == "" {
		p.sdk.path = cc.String("config")
	}
	slots, err := p.slots(cc.StringSlice("cluster"))
	if err != nil {
		return err
	}
	address, err := metricsAddress(cc)
	if err != nil {
		return err
	}
	if err := harden(); err != nil {
		p.log.Warn("memory of this process may reach the disk", "error", err)
	}
	log := p.log
	if cc.Bool("verbose") {
		log = slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	d, err := pkcs11.New(slots, log, pkcs11.OnlyUser(os.Getuid()))
	if err != nil {
		return err
	}
	socket := cc.String("socket")
	return d.Run(cc.Context, pkcs11.RunOptions{
		Socket: socket, MaxApplications: cc.Int("max-applications"), Metrics: address, Version: version(),
		Ready: func(at, metrics string) {
			fmt.Fprintf(p.out, "ready: %d slots at %s%s\n", len(slots), at, shownAt(metrics))
		},
	})
}

// slots finds the clusters and what applies to them.
func (p *program) slots(names []string) ([]pkcs11.Slot, error) {
	if len(names) == 0 {
		return nil, usagef("no cluster: name it with --cluster or HSMBACKUP_CLUSTER")
	}
	var slots []pkcs11.Slot
	for _, name := range names {
		pr, err := profile.Find(name)
		if err != nil {
			return nil, err
		}
		options, err := p.options(pr)
		if err != nil {
			return nil, err
		}
		if err := p.reachable(context.Background(), pr, options); err != nil {
			p.log.Warn("the cluster does not answer yet; applications get CKR_DEVICE_ERROR until it does", "cluster", name, "error", err)
		}
		slots = append(slots, pkcs11.Slot{Profile: pr, Options: options})
	}
	return slots, nil
}

// reachable opens the cluster once without a login, so that a wrong setting is found
// before applications meet it.
func (p *program) reachable(ctx context.Context, pr *profile.Profile, options []cluster.Option) error {
	c, err := cluster.Open(ctx, pr, cluster.Credential{}, options...)
	if err != nil {
		return err
	}
	return c.Close()
}
