package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

func (p *program) credentialCommand() *cli.Command {
	kind := &cli.StringFlag{Name: "kind", Required: true, Usage: "appliance (snapshots and synckey run with it) or client (users connect with it before they log in)"}
	name := &cli.StringFlag{Name: "name", Required: true, Usage: "`NAME` of the appliance or client"}
	return &cli.Command{Name: "credential", Usage: "certificates of appliances and clients", Subcommands: []*cli.Command{
		{
			Name: "issue", Usage: "make an identity file, as an admin", ArgsUsage: "[CLUSTER]", Action: p.issueCredential,
			Description: "Example: hsmbackup credential issue ./east --kind appliance --name backup-2 --days 90 --out backup-2.pem\n\n" +
				"The key is made here and stays in the file. Where every certificate has expired, the operator of an HSM issues one from its folder, while that HSM is stopped: --dir ./east/hsm-1.",
			Flags: append(clusterFlags(), kind, name,
				&cli.IntFlag{Name: "days", Value: 730, Usage: "how long it is valid"},
				&cli.StringFlag{Name: "out", Required: true, Usage: "the identity `FILE` to write"},
				&cli.BoolFlag{Name: "replace", Usage: "replace the file; programs that use it go on with the new one"},
				&cli.StringFlag{Name: "dir", Usage: "the `FOLDER` of a stopped HSM to issue from, instead of a running cluster"}),
		},
		withApproval(&cli.Command{
			Name: "revoke", Usage: "end all certificates of a name that were issued until now, as an admin", ArgsUsage: "[CLUSTER]", Action: p.revokeCredential,
			Description: "Example: hsmbackup credential revoke ./east --kind appliance --name backup-2\n\nThey are refused at once, and their connections end. New ones can be issued under the same name.",
			Flags:       append(clusterFlags(), kind, name),
		}),
	}}
}

func (p *program) issueCredential(cc *cli.Context) error {
	kind, name, out := cc.String("kind"), cc.String("name"), cc.String("out")
	validity := time.Duration(cc.Int("days")) * 24 * time.Hour
	issued := func(expires time.Time, err error) error {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: there is a file %s; name another, or give --replace", hsm.ErrExist, out)
		}
		if err != nil {
			return err
		}
		doc := map[string]any{"kind": kind, "name": name, "path": out, "expires": expires}
		return p.result(doc, func(w io.Writer) {
			fmt.Fprintf(w, "%s %s: %s, good until %s\n", kind, name, out, expires.Format(time.RFC3339))
		})
	}
	if dir := cc.String("dir"); dir != "" {
		return p.withFolder(dir, func(f *server.Folder) error {
			return issued(f.Issue(kind, name, validity, out, cc.Bool("replace")))
		})
	}
	return p.withNamed(cc, target(cc), who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		return issued(c.IssueIdentity(ctx, kind, name, validity, out, cc.Bool("replace")))
	})
}

func (p *program) withFolder(dir string, f func(*server.Folder) error) error {
	folder, err := server.OpenFolder(dir, p.openSeal)
	if err != nil {
		return err
	}
	return errors.Join(f(folder), folder.Close())
}

func (p *program) revokeCredential(cc *cli.Context) error {
	kind, name := cc.String("kind"), cc.String("name")
	return p.withNamed(cc, target(cc), who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		changed, err := c.RevokeIdentity(ctx, kind, name)
		if err != nil {
			return err
		}
		doc := map[string]any{"kind": kind, "name": name, "revoked": true, "missing": notNil(changed.Missing)}
		return p.result(doc, func(w io.Writer) {
			fmt.Fprintf(w, "certificates of %s %s are revoked on %d HSMs\n", kind, name, len(changed.Copies))
		})
	})
}

func (p *program) renewCommand() *cli.Command {
	return &cli.Command{
		Name: "renew", Usage: "make the certificate of a stopped HSM anew; one that runs does so by itself", ArgsUsage: "DIR", Action: p.renew,
		Description: "Example: hsmbackup hsm renew ./east/hsm-1",
	}
}

func (p *program) renew(cc *cli.Context) error {
	dir := cc.Args().First()
	if dir == "" {
		return usagef("which folder?")
	}
	return p.withFolder(dir, func(f *server.Folder) error {
		expires, err := f.Renew()
		if err != nil {
			return err
		}
		c := f.Config()
		return p.result(map[string]any{"id": c.ID, "name": c.Name, "expires": expires}, func(w io.Writer) {
			fmt.Fprintf(w, "%s %s: certificate good until %s\n", c.Name, c.ID, expires.Format(time.RFC3339))
		})
	})
}
