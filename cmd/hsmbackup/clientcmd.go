package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/user"
	"runtime/debug"
	"strconv"

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
			"Only the user the daemon runs as may connect, root, and who is named with --allow. systemd may hand the socket over (LISTEN_FDS). SIGHUP goes on as the program on disk, with all sockets open.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "listen at this `PATH`; not needed with a socket of systemd's"},
			&cli.StringSliceFlag{Name: "cluster", Aliases: []string{"c"}, EnvVars: []string{"HSMBACKUP_CLUSTER"}, Usage: "`CLUSTER` to serve, one slot each, in this order: a name from the configuration file, or the path of a profile"},
			&cli.StringFlag{Name: "config", Aliases: []string{"sdk-config"}, EnvVars: []string{"HSMBACKUP_SDK_CONFIG"}, Usage: "the durability policy of this CloudHSM configuration `FILE` applies: cloudhsm_client.cfg (Client SDK 3) or cloudhsm-pkcs11.cfg (Client SDK 5)"},
			&cli.StringFlag{Name: "component", Usage: "the same, of the file of pkcs11, dyn, jce, cli, ksp or openssl-provider in its usual place"},
			&cli.StringSliceFlag{Name: "allow", Usage: "let this `USER` connect too, by name or number; the socket is then open to all, and the daemon asks the kernel who connects"},
			&cli.IntFlag{Name: "max-applications", Value: 4096, Usage: "connections served at once"},
			&cli.BoolFlag{Name: "verbose", Usage: "log every application and refused call"},
			metricsFlag(""),
		},
	}
}

func (p *program) client(cc *cli.Context) error {
	quietenMonitor(p.log)
	if p.sdk.path == "" {
		p.sdk.path = cc.String("config")
	}
	slots, err := p.slots(cc.Context, cc.StringSlice("cluster"))
	if err != nil {
		return err
	}
	address, err := metricsAddress(cc)
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(math.MaxInt64) // a thousand applications may need more than a verb
	collectRarely()
	p.guardMemory()
	log := p.log
	if cc.Bool("verbose") {
		log = slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	users, err := allowed(cc.StringSlice("allow"))
	if err != nil {
		return err
	}
	d, err := pkcs11.New(slots, log, pkcs11.OnlyUsers(users...))
	if err != nil {
		return err
	}
	return d.Run(cc.Context, pkcs11.RunOptions{
		Socket: cc.String("socket"), Open: len(users) > 1, MaxApplications: cc.Int("max-applications"), Metrics: address, Version: version(),
		Ready: func(at, metrics string) {
			fmt.Fprintf(p.out, "ready: %d slots at %s%s\n", len(slots), at, shownAt(metrics))
		},
	})
}

// allowed are the numbers of the users who may connect, the daemon's own first.
func allowed(names []string) ([]int, error) {
	users := []int{os.Getuid()}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			u, err = user.LookupId(name)
		}
		if err != nil {
			return nil, usagef("--allow: there is no user %q", name)
		}
		n, err := strconv.Atoi(u.Uid)
		if err != nil {
			return nil, usagef("--allow: user %q has no number", name)
		}
		users = append(users, n)
	}
	return users, nil
}

// slots finds the clusters and what applies to them.
func (p *program) slots(ctx context.Context, names []string) ([]pkcs11.Slot, error) {
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
		err = p.reachable(ctx, pr, options)
		if errors.Is(err, cluster.ErrMinCopies) { // a setting that no cluster of this size fulfils
			return nil, err
		}
		if err != nil {
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
