package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// tokenView is a token that waits, in CloudHSM's fields where it has them. Token is
// what the file of the token says under the same name.
type tokenView struct {
	User      string      `json:"username"`
	Service   hsm.Service `json:"service"`
	Key       *hsm.KeyRef `json:"key_reference,omitempty"`
	Required  int         `json:"approvals_required"`
	Approvals int         `json:"number_of_approvals"`
	Left      int         `json:"token_timeout_seconds"`
	HSM       hsm.HSMID   `json:"hsm"`
	Token     string      `json:"token"`
}

func (p *program) listTokens(cc *cli.Context) error {
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		tokens, missing, err := c.QuorumTokens(ctx)
		if err != nil {
			return err
		}
		views, rows := make([]tokenView, len(tokens)), make([][]string, len(tokens))
		for i, t := range tokens {
			v := tokenView{User: t.Requester, Service: t.Service, Required: t.Required, Approvals: t.Approvals, Left: int(t.Left / time.Second),
				HSM: t.HSM, Token: base64.StdEncoding.EncodeToString(t.Digest[:])}
			key := ""
			if t.Key != 0 {
				v.Key, key = &t.Key, t.Key.String()
			}
			views[i] = v
			rows[i] = []string{v.User, string(v.Service), key, fmt.Sprintf("%d of %d", v.Approvals, v.Required), (time.Duration(v.Left) * time.Second).String(), v.HSM.String()}
		}
		doc := map[string]any{"tokens": views, "total": len(views), "missing": missing}
		return p.result(doc, func(w io.Writer) {
			table(w, []string{"USER", "SERVICE", "KEY", "APPROVED", "LEFT", "HSM"}, rows)
			for _, id := range missing {
				fmt.Fprintf(w, "%s did not answer; its tokens are not listed\n", id)
			}
		})
	})
}

func (p *program) deleteTokens(cc *cli.Context) error {
	scope := cc.String("scope")
	if scope != "user" && scope != "all" {
		return usagef("--scope %q: want user or all", scope)
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		n, err := c.DeleteQuorumTokens(ctx, scope == "all")
		if err != nil {
			return err
		}
		return p.result(map[string]any{"scope": scope, "deleted": n}, func(w io.Writer) { fmt.Fprintln(w, "Deletion of quorum token(s) successful") })
	})
}

func (p *program) listTimeouts(cc *cli.Context) error {
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		t, err := c.QuorumTimeouts(ctx)
		if err != nil {
			return err
		}
		doc := map[string]int{hsm.TimeoutGenerated: int(t.Generated / time.Second), hsm.TimeoutApproved: int(t.Approved / time.Second)}
		return p.result(doc, func(w io.Writer) {
			fmt.Fprintf(w, "generated  %d\napproved   %d\n", doc[hsm.TimeoutGenerated], doc[hsm.TimeoutApproved])
		})
	})
}

func (p *program) setTimeout(cc *cli.Context) error {
	if cc.IsSet(hsm.TimeoutGenerated) == cc.IsSet(hsm.TimeoutApproved) {
		return usagef("give one of --generated and --approved")
	}
	change := hsm.Change{Kind: hsm.ChangeQuorumTimeout, Name: hsm.TimeoutGenerated}
	if cc.IsSet(hsm.TimeoutApproved) {
		change.Name = hsm.TimeoutApproved
	}
	change.Value = cc.String(change.Name)
	d, err := hsm.ParseTokenTimeout(change.Value)
	if err != nil {
		return err
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		if _, err := c.Change(ctx, change); err != nil {
			return err
		}
		return p.result(map[string]any{"timeout": change.Name, "seconds": int(d / time.Second)}, func(w io.Writer) { fmt.Fprintln(w, "Set token timeout successful") })
	})
}
