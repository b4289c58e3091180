package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// withApproval gives a command and its subcommands the flag for approved tokens.
func withApproval(c *cli.Command) *cli.Command {
	for _, s := range c.Subcommands {
		withApproval(s)
	}
	if len(c.Subcommands) == 0 {
		c.Flags = append(c.Flags, &cli.StringSliceFlag{Name: "approval", Aliases: []string{"wrapping-approval", "payload-approval"}, Usage: "`FILE` with a quorum token that enough users have signed"})
	}
	return c
}

func (p *program) quorumCommand() *cli.Command {
	token := &cli.StringFlag{Name: "token", Usage: "the `FILE` with the token", Required: true}
	service := &cli.StringFlag{Name: "service", Usage: "`SERVICE`: user, quorum, cluster, key-usage or key-management", Required: true}
	verb := func(name, usage, example string, action cli.ActionFunc, flags ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Action: action, Flags: flags, Description: "Example: hsmbackup quorum token-sign " + example}
	}
	generate := verb("generate", "have an HSM issue a token for one operation of yours, good for ten minutes", "generate --service key-usage --token sign.token attr.label=web --cluster ./east", p.generateToken,
		append(append(clusterFlags(), filterFlags()...), token, service)...)
	generate.ArgsUsage = "[FILTER…]"
	set := verb("set-quorum-value", "how many admins approve each operation of a service", "set-quorum-value --service user --value 2 --cluster ./east", p.setQuorumValue,
		append(clusterFlags(), &cli.StringFlag{Name: "service", Usage: "`SERVICE`: user, quorum or cluster", Required: true}, &cli.StringFlag{Name: "value", Usage: "`M`: 2 to 8; 1: nobody else approves", Required: true})...)
	return &cli.Command{Name: "quorum", Usage: "operations that several users approve (M of N)", Subcommands: []*cli.Command{
		{Name: "token-sign", Usage: "approve with signatures over tokens", Subcommands: []*cli.Command{
			generate,
			verb("show", "say what a token is for and who has signed it, without a cluster", "show --token sign.token", p.showToken, token),
			verb("sign", "sign a token, or a registration, with a key that never leaves this machine; no cluster is asked", "sign --token sign.token --key bob.pem --username bob", p.signToken, token,
				&cli.StringFlag{Name: "key", Usage: "`FILE` with the private key, PEM: RSA or EC", Required: true},
				&cli.StringFlag{Name: "username", Usage: "the `USER` whose key it is"}),
			verb("list-quorum-values", "how many admins approve", "list-quorum-values --cluster ./east", p.listQuorumValues, clusterFlags()...),
			withApproval(set),
			verb("list", "the tokens of all users that wait on the HSMs", "list --cluster ./east", p.listTokens, clusterFlags()...),
			verb("delete", "withdraw tokens, as an admin", "delete --scope all --cluster ./east", p.deleteTokens,
				append(clusterFlags(), &cli.StringFlag{Name: "scope", Usage: "`WHOSE`: user (your own) or all", Required: true})...),
			verb("list-timeouts", "how long tokens are good, in seconds", "list-timeouts --cluster ./east", p.listTimeouts, clusterFlags()...),
			verb("set-timeout", "how long tokens that are issued from now on are good, as an admin", "set-timeout --generated 900 --cluster ./east", p.setTimeout,
				append(clusterFlags(), &cli.StringFlag{Name: "generated", Usage: "from when a token was issued: `SECONDS`, 1 to 86400"},
					&cli.StringFlag{Name: "approved", Usage: "of that, from when its HSM has first seen it with enough approvals: `SECONDS`"})...),
		}},
	}}
}

func (p *program) generateToken(cc *cli.Context) error {
	service, err := hsm.ParseService(cc.String("service"))
	if err != nil {
		return err
	}
	filter, err := filterOf(cc, cc.Args().Slice())
	if err != nil {
		return err
	}
	if !service.OfKey() && !filter.Empty() {
		return usagef("service %s is not of a key", service)
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		var ref hsm.KeyRef
		if service.OfKey() {
			key, err := selectKey(ctx, c, filter, hsm.ClassSecret, hsm.ClassPrivate)
			if err != nil {
				return err
			}
			ref = key.Ref
		}
		token, err := c.QuorumToken(ctx, service, ref)
		if err != nil {
			return err
		}
		return p.writeToken(cc, hsm.Approval{Token: token})
	})
}

// writeToken writes a token with what signatures it has to its file, and says what
// it is.
func (p *program) writeToken(cc *cli.Context, a hsm.Approval) error {
	b, err := hsm.EncodeApprovalFile(a)
	if err != nil {
		return err
	}
	if err := os.WriteFile(cc.String("token"), b, 0o600); err != nil {
		return err
	}
	return p.describeToken(cc.String("token"), a)
}

func (p *program) describeToken(path string, a hsm.Approval) error {
	t, err := hsm.ParseQuorumToken(a.Token)
	if err != nil {
		return err
	}
	signers := []string{}
	for _, s := range a.Signatures {
		signers = append(signers, s.User)
	}
	doc := map[string]any{"path": path, "service": t.Service, "requester": t.Requester, "cluster": t.Cluster, "hsm": t.HSM, "lineage": t.Lineage,
		"issued": t.Issued.Format(time.RFC3339), "expires": t.Expires.Format(time.RFC3339), "signers": signers}
	if t.Service.OfKey() {
		doc["key_reference"] = t.Key
	}
	return p.result(doc, func(w io.Writer) {
		fmt.Fprintf(w, "token      %s\nfor        one operation of service %s by %s\n", path, t.Service, t.Requester)
		if t.Service.OfKey() {
			fmt.Fprintf(w, "key        %s\n", t.Key)
		}
		fmt.Fprintf(w, "at         %s, %s\nexpires    %s\nsigned by  %d %q\n", t.HSM, t.Cluster, t.Expires.Format(time.RFC3339), len(signers), signers)
	})
}

func (p *program) showToken(cc *cli.Context) error {
	a, err := readApproval(cc.String("token"))
	if err != nil {
		return err
	}
	return p.describeToken(cc.String("token"), a)
}

// signToken adds a signature to a file of either sort.
func (p *program) signToken(cc *cli.Context) error {
	path := cc.String("token")
	key, err := readPrivateKey(cc.String("key"))
	if err != nil {
		return err
	}
	b, err := hsm.ReadSmallFile(path)
	if err != nil {
		return err
	}
	if message, _, err := hsm.ParseRegistrationFile(b); err == nil {
		return p.signRegistration(path, key, message)
	}
	a, err := hsm.ParseApprovalFile(b)
	if err != nil {
		return err
	}
	user, err := hsm.CanonicalUserName(cc.String("username"))
	if err != nil {
		return usagef("whose key is it? name the user with --username")
	}
	for _, s := range a.Signatures {
		if s.User == user {
			return usagef("%s has signed this token already", user)
		}
	}
	signature, err := hsm.SignWith(key, a.Token)
	if err != nil {
		return fmt.Errorf("sign with %s: %w", cc.String("key"), err)
	}
	a.Signatures = append(a.Signatures, hsm.ApprovalSignature{User: user, Signature: signature})
	return p.writeToken(cc, a)
}

func readApproval(path string) (hsm.Approval, error) {
	b, err := hsm.ReadSmallFile(path)
	if err != nil {
		return hsm.Approval{}, err
	}
	a, err := hsm.ParseApprovalFile(b)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return a, err
}

func readApprovals(paths []string) (as []hsm.Approval, err error) {
	for _, path := range paths {
		a, err := readApproval(path)
		if err != nil {
			return nil, err
		}
		as = append(as, a)
	}
	return as, nil
}

func (p *program) listQuorumValues(cc *cli.Context) error {
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		v, err := c.QuorumValues(ctx)
		if err != nil {
			return err
		}
		doc := map[string]int{"user": max(v.User, 1), "quorum": max(v.Quorum, 1), "cluster": max(v.Cluster, 1)}
		return p.result(doc, func(w io.Writer) {
			fmt.Fprintf(w, "user     %d\nquorum   %d\ncluster  %d\n", doc["user"], doc["quorum"], doc["cluster"])
		})
	})
}

func (p *program) setQuorumValue(cc *cli.Context) error {
	change := hsm.Change{Kind: hsm.ChangeQuorumValue, Name: cc.String("service"), Value: cc.String("value")}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		if _, err := c.Change(ctx, change); err != nil {
			return err
		}
		doc := map[string]any{"service": change.Name, "value": change.Value}
		return p.result(doc, func(w io.Writer) { fmt.Fprintln(w, "Set quorum value successful") })
	})
}
