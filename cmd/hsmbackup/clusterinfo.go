package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
)

func (p *program) clusterInfo(cc *cli.Context) error {
	return p.withNamed(cc, target(cc), statusLogin(cc), func(ctx context.Context, c *cluster.Cluster) error {
		info, err := c.Info(ctx)
		if err != nil {
			return err
		}
		if cc.Bool("all") {
			info.HSMs = append(info.HSMs, info.Removed...)
		}
		return p.result(info, func(w io.Writer) { printInfo(w, info) })
	})
}

func printInfo(w io.Writer, info *cluster.Info) {
	fmt.Fprintf(w, "cluster %s %s in %s, %s\n", info.Name, info.ID, info.Region, info.Lineage)
	rows := [][]string{}
	for _, h := range info.HSMs {
		lag := "never in sync"
		if h.LagSeconds >= 0 {
			lag = fmt.Sprintf("%.1f s", h.LagSeconds)
		}
		root := h.Root
		if len(root) > 16 {
			root = root[:16]
		}
		rows = append(rows, []string{h.Name, h.ID.String(), h.Address, h.Zone, h.State, fmt.Sprint(h.Keys), root, lag})
	}
	table(w, []string{"HSM", "ID", "ADDRESS", "ZONE", "STATE", "KEYS", "ROOT", "SYNCED"}, rows)
	for _, h := range info.HSMs {
		if h.Notice != "" {
			fmt.Fprintf(w, "%s: %s\n", h.ID, h.Notice)
		}
	}
	fmt.Fprintf(w, "%d keys, in sync: %t, in doubt: %d, on too few HSMs: %d; policy: at least %d copies, checked on use: %t\n",
		info.Keys, info.InSync, info.InDoubt, info.UnderReplicated, info.MinCopies, info.CheckOnUse)
	switch {
	case len(info.HSMs) == 1:
		fmt.Fprintln(w, "warning: one HSM; a key made since the last snapshot dies with it")
	case info.MinCopies == len(info.HSMs):
		fmt.Fprintln(w, "warning: min-copies equals the number of HSMs; no key can be made while one is down")
	}
}
