package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func (p *program) userCommand() *cli.Command {
	role := &cli.StringFlag{Name: "role", Value: string(hsm.RoleCryptoUser), Usage: "admin or crypto-user"}
	change := func(name, usage string, kind hsm.ChangeKind, password bool) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: "NAME", Flags: append(clusterFlags(), role),
			Description: "Example: hsmbackup user " + name + " alice --role crypto-user --cluster ./east\n\nThe new password comes from HSMBACKUP_NEW_PASSWORD or a prompt.",
			Action:      func(cc *cli.Context) error { return p.changeUser(cc, kind, password) },
		}
	}
	unlock := change("unlock", "let a user log in again", hsm.ChangeUserUnlock, false)
	remove := change("delete", "delete a user that owns no keys", hsm.ChangeUserDelete, false)
	for _, c := range []*cli.Command{unlock, remove} {
		c.Description = "Example: hsmbackup user " + c.Name + " alice --role crypto-user --cluster ./east"
	}
	return withApproval(&cli.Command{Name: "user", Usage: "users of a cluster", Subcommands: []*cli.Command{
		p.changeQuorumCommand(), p.changeMFACommand(),
		change("create", "make a user", hsm.ChangeUserCreate, true),
		{Name: "list", Usage: "list users", Flags: clusterFlags(), Action: p.listUsers,
			Description: "Example: hsmbackup user list --cluster ./east"},
		remove,
		change("change-password", "set a new password, which also unlocks", hsm.ChangeUserPassword, true),
		unlock,
	}})
}

// userView is a user as --json prints it.
type userView struct {
	Name   string   `json:"username"`
	Role   hsm.Role `json:"role"`
	Locked bool     `json:"locked"`
	// Coverage is "full", or "inconsistent" while the HSMs that answer do not agree on
	// the user; Missing are the HSMs that do not know it, or are away.
	Coverage string      `json:"cluster_coverage,omitempty"`
	Missing  []hsm.HSMID `json:"missing,omitempty"`
	// Quorum and MFA are what the user has a key for: token-sign, or nothing.
	Quorum []string `json:"quorum"`
	MFA    []string `json:"mfa"`
}

func (p *program) changeUser(cc *cli.Context, kind hsm.ChangeKind, password bool) error {
	name := cc.Args().First()
	if name == "" {
		return usagef("name the user")
	}
	role, err := hsm.ParseRole(cc.String("role"))
	if err != nil {
		return err
	}
	change := hsm.Change{Kind: kind, User: name, Role: role}
	if password {
		if change.Password, err = p.newPassword(name); err != nil {
			return err
		}
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		if _, err := c.Change(ctx, change); err != nil {
			return err
		}
		v := map[string]any{"username": name, "role": role}
		return p.result(v, func(w io.Writer) { fmt.Fprintf(w, "%s %s: done\n", role, name) })
	})
}

func (p *program) listUsers(cc *cli.Context) error {
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		users, err := c.Users(ctx)
		if err != nil {
			return err
		}
		views := make([]userView, len(users))
		rows := make([][]string, len(users))
		for i, u := range users {
			views[i] = userView{Name: u.Name, Role: u.Role, Locked: u.Locked, Coverage: "full", Missing: u.Missing, Quorum: strategy(u.Quorum), MFA: strategy(u.MFA)}
			if !u.Consistent {
				views[i].Coverage = "inconsistent"
			}
			rows[i] = []string{u.Name, string(u.Role), views[i].Coverage, map[bool]string{true: "locked", false: ""}[u.Locked], yes(u.Quorum), yes(u.MFA)}
		}
		doc := map[string]any{"users": views, "total": len(views)}
		return p.result(doc, func(w io.Writer) { table(w, []string{"NAME", "ROLE", "COVERAGE", "", "QUORUM", "MFA"}, rows) })
	})
}
