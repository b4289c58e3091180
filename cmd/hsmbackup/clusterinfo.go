package main

import (
	"context"
	"fmt"
	"io"
	"time"

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
	fmt.Fprintf(w, "%d keys, in sync: %t, in doubt: %d, on too few HSMs: %d; policy: at least %d copies%s, checked on use: %t\n",
		info.Keys, info.InSync, info.InDoubt, info.UnderReplicated, info.MinCopies, inZones(info.MinZones), info.CheckOnUse)
	for _, r := range info.Residue {
		fmt.Fprintf(w, "in doubt: operation %s, keys %v on %s since %s\n", r.Op, r.Refs, r.HSM, r.Since.Format(time.RFC3339))
	}
	for _, text := range info.Warnings {
		fmt.Fprintln(w, "warning: "+text)
	}
}

func inZones(n int) string {
	if n <= 1 {
		return ""
	}
	return fmt.Sprintf(" in %d zones", n)
}

// unevenView is an object that is not everywhere, as --json prints it.
type unevenView struct {
	cluster.Uneven
	Kind       string  `json:"kind"`
	AgeSeconds float64 `json:"age_seconds"` // -1: not known
}

func (p *program) coverageCommand() *cli.Command {
	return &cli.Command{
		Name: "coverage", Usage: "list what is not yet on every HSM, and since when", ArgsUsage: "[CLUSTER]", Action: p.clusterCoverage,
		Description: "Example: hsmbackup cluster coverage ./east",
		Flags:       append(clusterFlags(), &cli.IntFlag{Name: "max-items", Value: 100, Usage: "print at most `N`; the total counts all"}),
	}
}

func (p *program) clusterCoverage(cc *cli.Context) error {
	return p.withNamed(cc, target(cc), statusLogin(cc), func(ctx context.Context, c *cluster.Cluster) error {
		found, err := c.Uneven(ctx, cc.Int("max-items"))
		if err != nil {
			return err
		}
		views, rows := []unevenView{}, [][]string{}
		for _, u := range found.Objects {
			v := unevenView{Uneven: u, Kind: u.Kind.String(), AgeSeconds: -1}
			since := "unknown"
			if !u.Since.IsZero() {
				v.AgeSeconds, since = max(0, time.Since(u.Since).Seconds()), u.Since.Format(time.RFC3339)
			}
			views = append(views, v)
			rows = append(rows, []string{u.Ref.String(), v.Kind, unevenState(u), joinIDs(u.Missing), since})
		}
		doc := map[string]any{"objects": views, "total": found.Total, "not_asked": notNil(found.Unasked), "in_sync": found.Total == 0 && len(found.Unasked) == 0}
		return p.result(doc, func(w io.Writer) {
			table(w, []string{"REFERENCE", "KIND", "STATE", "MISSING ON", "SINCE"}, rows)
			fmt.Fprintf(w, "%d of %d objects that are not everywhere; not asked: %s\n", len(rows), found.Total, joinIDs(found.Unasked))
		})
	})
}

func unevenState(u cluster.Uneven) string {
	switch {
	case u.Destroyed:
		return "destroyed"
	case u.Stale:
		return "changed"
	}
	return "new"
}
