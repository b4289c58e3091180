package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

func (p *program) inviteCommand() *cli.Command {
	return &cli.Command{
		Name: "invite", Usage: "print a one-time token with which a new HSM joins the cluster, as an admin", ArgsUsage: "[CLUSTER]", Action: p.invite,
		Description: "Example: hsmbackup hsm invite ./east --expires 1h\n\nWhoever has the token can join, and then has every key: hand it over as you would a password. It serves for one HSM, and expires.",
		Flags: append(clusterFlags(),
			&cli.DurationFlag{Name: "expires", Value: time.Hour, Usage: "how long the token is good"},
			&cli.StringFlag{Name: "replace", Usage: "`HSM`, an id or name, that is dead and is removed when the new one has joined"}),
	}
}

func (p *program) invite(cc *cli.Context) error {
	life := cc.Duration("expires")
	if life <= 0 {
		return usagef("--expires %s: want a time ahead", life)
	}
	return p.withNamed(cc, target(cc), who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		var replaces hsm.HSMID
		if name := cc.String("replace"); name != "" {
			m, err := findMember(ctx, c, name)
			if err != nil {
				return err
			}
			replaces = m.ID
		}
		i, err := c.Invite(ctx, life, replaces)
		if err != nil {
			return err
		}
		defer i.Token.Wipe()
		if len(i.Missing) > 0 {
			fmt.Fprintf(p.err, "note: %v did not answer and get to know the token when they do\n", i.Missing)
		}
		doc := map[string]any{"token": string(i.Token.Reveal()), "id": i.ID.String(), "expires": i.Expires}
		return p.result(doc, func(w io.Writer) { fmt.Fprintf(w, "%s\n", i.Token.Reveal()) })
	})
}

// errNoMember: the cluster has no such HSM, or not any more.
var errNoMember = errors.New("no such HSM in the cluster")

// findMember finds a member by id or name. errNoMember; a name that two have
// is refused.
func findMember(ctx context.Context, c *cluster.Cluster, name string) (hsm.Member, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return hsm.Member{}, err
	}
	var found []hsm.Member
	for _, m := range members {
		if m.ID.String() == name && m.Removed {
			return m, fmt.Errorf("%w: %s was removed", errNoMember, name)
		}
		if m.ID.String() == name {
			return m, nil
		}
		if m.Name == name && !m.Removed {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return hsm.Member{}, fmt.Errorf("%w: %q", errNoMember, name)
	case 1:
		return found[0], nil
	}
	return hsm.Member{}, fmt.Errorf("%w: %d HSMs are called %q; give the id", hsm.ErrInvalid, len(found), name)
}

func (p *program) joinCommand() *cli.Command {
	return &cli.Command{
		Name: "join", Usage: "make the folder of a new HSM that joins a cluster with a token", Action: p.joinCluster,
		Description: "Example: hsmbackup hsm join --token hsmjoin1-… --dir ./hsm-4 --address 10.0.4.7:2223 --zone d && hsmbackup hsm serve ./hsm-4\n\n" +
			"It makes its own key, gets certificate and keys from an HSM that the token names, and copies every object. It counts as a member once it has run. If it is interrupted, run it again: it goes on.\n" +
			"The token may also stand in HSMBACKUP_JOIN_TOKEN, or come on standard input with --token -, where no other user of the machine sees it.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "token", EnvVars: []string{"HSMBACKUP_JOIN_TOKEN"}, Required: true, Usage: "what hsm invite printed, or - for standard input"},
			&cli.StringFlag{Name: "dir", Required: true, Usage: "new or empty `FOLDER` for the HSM"},
			&cli.StringFlag{Name: "address", Usage: "`HOST:PORT` where the others reach it (default: this machine's address towards the cluster, and a free port)"},
			&cli.StringFlag{Name: "listen", Usage: "`HOST:PORT` to listen on, if that is not the address"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` for people (default: the next hsm-N)"},
			&cli.StringFlag{Name: "zone", Usage: "availability `ZONE`"},
			&cli.StringFlag{Name: "seal", Value: "file", Usage: "what protects keys at rest: file (development), passphrase or identity"},
			&cli.BoolFlag{Name: "serve", Usage: "then run it in the foreground, as hsm serve does"},
		},
	}
}

func (p *program) joinCluster(cc *cli.Context) error {
	token, err := p.joinToken(cc.String("token"))
	if err != nil {
		return err
	}
	defer token.Wipe()
	p.guardMemory()
	spec := server.JoinSpec{
		Token: token, Dir: cc.String("dir"), Address: cc.String("address"), Listen: cc.String("listen"), Name: cc.String("name"), Zone: cc.String("zone"),
		Seal: p.newSeal(cc.String("seal")), Version: version(), Log: p.log,
	}
	if spec.Address == "" {
		if spec.Address, err = server.DefaultJoinAddress(token); err != nil {
			return err
		}
	}
	c, err := server.Join(cc.Context, spec)
	if err != nil {
		return err
	}
	if cc.Bool("serve") {
		return p.serveFolder(cc.Context, cc.String("dir"), "")
	}
	doc := map[string]any{
		"id": c.ID, "name": c.Name, "address": c.Address, "zone": c.Zone, "cluster": c.Cluster, "cluster_name": c.ClusterName, "dir": cc.String("dir"),
	}
	return p.result(doc, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s joins cluster %s at %s, zone %s\nstart it with: hsmbackup hsm serve %s\n", c.Name, c.ID, c.ClusterName, c.Address, c.Zone, cc.String("dir"))
	})
}

func (p *program) removeCommand() *cli.Command {
	return &cli.Command{
		Name: "remove", Usage: "remove an HSM from the cluster, for good, as an admin", ArgsUsage: "[CLUSTER] HSM", Action: p.removeHSM,
		Description: "Example: hsmbackup hsm remove ./east hsm-3\n\nHSM is an id or a name. The HSM takes nothing new, what it holds is copied to the others, and then it is turned away everywhere and stops.\n" +
			"With --force also one that is dead: keys, users, settings and revocations that only it held are lost, and operations in doubt wait for cluster settle.",
		Flags: append(clusterFlags(),
			&cli.BoolFlag{Name: "force", Usage: "also if it does not answer, or too few HSMs are left"},
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Minute, Usage: "give up after this time, and let it stay"}),
	}
}

func (p *program) removeHSM(cc *cli.Context) error {
	name, clusterName := cc.Args().First(), cc.String("cluster")
	if cc.NArg() == 2 {
		clusterName, name = cc.Args().Get(0), cc.Args().Get(1)
	}
	if name == "" {
		return usagef("which HSM? give its id or name")
	}
	return p.withNamed(cc, clusterName, who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		ctx, cancel := context.WithTimeout(ctx, cc.Duration("timeout"))
		defer cancel()
		m, err := findMember(ctx, c, name)
		if err != nil {
			return err
		}
		removed, err := c.Remove(ctx, m.ID, cc.Bool("force"))
		if err != nil {
			return err
		}
		doc := map[string]any{"id": m.ID, "name": m.Name, "removed": true, "drained": removed.Drained}
		return p.result(doc, func(w io.Writer) {
			fmt.Fprintf(w, "%s %s is removed; %s\n", m.Name, m.ID, leftBehind(removed.Drained))
		})
	})
}

// leftBehind says what becomes of what a removed HSM held.
func leftBehind(drained bool) string {
	if drained {
		return "what it held is on the others"
	}
	return "what it alone held, nobody could copy: keys, users, settings, revocations that it had not passed on yet are lost"
}

func (p *program) settleCommand() *cli.Command {
	return &cli.Command{
		Name: "settle", Usage: "decide operations in doubt that hang on HSMs which cannot be asked any more, as an admin", ArgsUsage: "[CLUSTER]", Action: p.settle,
		Description: "Example: hsmbackup cluster settle ./east --keep\n\nA key whose creation was interrupted stays in doubt while an HSM that was removed by force, or set back to an older state, may have told a caller that it exists. Nobody else can know: keep it, or drop it.",
		Flags: append(clusterFlags(),
			&cli.BoolFlag{Name: "keep", Usage: "make the keys in doubt live"},
			&cli.BoolFlag{Name: "drop", Usage: "drop them: a caller who was told of one has lost it"}),
	}
}

func (p *program) settle(cc *cli.Context) error {
	if cc.Bool("keep") == cc.Bool("drop") {
		return usagef("say either --keep or --drop")
	}
	return p.withNamed(cc, target(cc), who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		s, err := c.Settle(ctx, cc.Bool("keep"))
		if err != nil {
			return err
		}
		return p.result(map[string]any{"members": s.Members, "keep": s.Keep}, func(w io.Writer) {
			if len(s.Members) == 0 {
				fmt.Fprintln(w, "nothing to decide: every HSM that may know is a member and can be asked")
				return
			}
			what := map[bool]string{true: "kept", false: "dropped"}[s.Keep]
			fmt.Fprintf(w, "what is in doubt because of %v is %s, as soon as all members have answered; cluster info shows what is left\n", s.Members, what)
		})
	})
}

// joinToken reads the token where it stands.
func (p *program) joinToken(value string) (hsm.Secret, error) {
	os.Unsetenv("HSMBACKUP_JOIN_TOKEN") // nothing that this process starts needs it
	if value != "-" {
		return hsm.NewSecret([]byte(value)), nil
	}
	line, err := bufio.NewReader(io.LimitReader(p.in, maxTokenLine)).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		return hsm.Secret{}, usagef("no token on standard input: %v", err)
	}
	return hsm.NewSecret([]byte(line)), nil
}

// maxTokenLine is more than any token.
const maxTokenLine = 32 << 10
