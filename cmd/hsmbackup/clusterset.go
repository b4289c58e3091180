package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func (p *program) clusterSetCommand() *cli.Command {
	return &cli.Command{
		Name: "set", Usage: "change the cluster's policy, as an admin", ArgsUsage: "[CLUSTER]", Action: p.clusterSet,
		Description: "Example: hsmbackup cluster set ./east --custodian age1… --custodian age1… --threshold 2\n\nCustodians replace the ones before; the next snapshot seals a new recovery envelope to them.",
		Flags: append(clusterFlags(),
			&cli.StringSliceFlag{Name: "custodian", Usage: "age `RECIPIENT` who may open the recovery envelope"},
			&cli.IntFlag{Name: "threshold", Value: 1, Usage: "how many custodians it takes"},
			&cli.IntFlag{Name: "min-copies", Usage: "HSMs that must hold a new key"},
			&cli.IntFlag{Name: "min-zones", Usage: "zones that these HSMs must stand in; 0: any"},
			&cli.BoolFlag{Name: "check-on-use", Usage: "refuse to use a key that is on fewer HSMs"}),
	}
}

func (p *program) clusterSet(cc *cli.Context) error {
	custodians := cc.StringSlice("custodian")
	if err := checkCustodians(custodians, cc.Int("threshold")); err != nil {
		return err
	}
	return p.withNamed(cc, target(cc), who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		s, err := c.Settings(ctx)
		if err != nil {
			return err
		}
		if len(custodians) > 0 {
			s.Custodians, s.Threshold = custodians, cc.Int("threshold")
		}
		if cc.IsSet("min-copies") {
			s.MinCopies = cc.Int("min-copies")
		}
		if cc.IsSet("min-zones") {
			s.MinZones = cc.Int("min-zones")
		}
		if cc.IsSet("check-on-use") {
			s.CheckOnUse = cc.Bool("check-on-use")
		}
		if _, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeSettings, Settings: &s}); err != nil {
			return err
		}
		for _, text := range c.Warnings() {
			p.warning(text)
		}
		doc := map[string]any{"custodians": notNil(s.Custodians), "threshold": s.Threshold, "min_copies": s.MinCopies, "min_zones": s.MinZones, "check_on_use": s.CheckOnUse}
		return p.result(doc, func(w io.Writer) {
			fmt.Fprintf(w, "%d custodians, %d needed; at least %d copies%s, checked on use: %t\n", len(s.Custodians), s.Threshold, s.MinCopies, inZones(s.MinZones), s.CheckOnUse)
		})
	})
}

// checkCustodians refuses recipients that do not parse and thresholds that
// cannot be met, before any HSM is asked.
func checkCustodians(custodians []string, threshold int) error {
	if len(custodians) == 0 {
		return nil
	}
	if threshold > 1 { // each has a share of their own, so that kinds may mix
		for _, c := range custodians {
			if _, err := backup.ParseRecipient(c); err != nil {
				return err
			}
		}
	} else if _, err := backup.ParseRecipients(custodians); err != nil {
		return err
	}
	if threshold < 1 || threshold > len(custodians) {
		return usagef("--threshold %d with %d custodians: want 1 to %d", threshold, len(custodians), len(custodians))
	}
	return nil
}

// adoptCustodians makes the recipients of a cluster's first snapshot its
// custodians, if it has none and an admin is logged in. An appliance may not: a
// stolen backup host could otherwise name itself.
func (p *program) adoptCustodians(cc *cli.Context, s hsm.Settings, recipients []string) error {
	if len(s.Custodians) > 0 {
		return nil
	}
	if err := checkCustodians(recipients, 1); err != nil {
		return err
	}
	l, ok, err := p.readLogin(anySide)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: the cluster has no custodians who could open its snapshots; an admin names them with cluster set --custodian RECIPIENT", hsm.ErrDenied)
	}
	return p.withNamed(cc, cc.String("cluster"), who{login: &l}, func(ctx context.Context, c *cluster.Cluster) error {
		s.Custodians, s.Threshold = recipients, 1
		if _, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeSettings, Settings: &s}); err != nil {
			return fmt.Errorf("the cluster has no custodians, and this login may not name them: %w", err)
		}
		fmt.Fprintf(p.err, "note: the cluster had no custodians; the snapshot's recipients are now its custodians, any one of whom can open it\n")
		return nil
	})
}
