package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/synckey"
)

func (p *program) synckeyCommand() *cli.Command {
	return &cli.Command{
		Name: "synckey", Usage: "reconcile the keys of two clusters of one lineage", ArgsUsage: "[verify-report FILE]", Action: p.synckeyVerb,
		Subcommands: []*cli.Command{p.resolveCommand()},
		Description: "Examples:\n  hsmbackup synckey --src ./east --dst ./west --users --dry-run\n  hsmbackup synckey --src ./east --dst ./west --report run.json\n  hsmbackup synckey --src ./east --dst ./west --users --watch --metrics :9106\n  hsmbackup synckey verify-report run.json --lineage LINEAGE     checks the signatures of both clusters; needs no key\n  hsmbackup synckey resolve --src ./east --dst ./west --key 0x00000000000026bf --keep src     decides between two keys under one reference\n\nLogins come from HSMBACKUP_SRC_PIN and HSMBACKUP_DST_PIN (and …_ROLE), falling back to HSMBACKUP_PIN; without any, from each cluster's appliance certificate.",
		Flags: append(append(append(append(filterFlags(), synckeyGuards()...), synckeyProof()...), watchFlags()...),
			&cli.StringFlag{Name: "src", Usage: "source `CLUSTER`"},
			&cli.StringFlag{Name: "dst", Usage: "destination `CLUSTER`"},
			&cli.BoolFlag{Name: "dry-run", Usage: "show the plan and change nothing; exit 3 when differences remain"},
			&cli.BoolFlag{Name: "both", Usage: "bring the source up to the destination too"},
			&cli.BoolFlag{Name: "destroyed", Usage: "destroy at the destination what was destroyed at the source"},
			&cli.BoolFlag{Name: "users", Usage: "take users and policies along"},
			&cli.StringFlag{Name: "rate", Usage: "insert at most so much, such as 500/s (objects) or 10MB/s (masked objects)"},
			&cli.StringFlag{Name: "src-credential", Usage: "appliance certificate `FILE` for the source"},
			&cli.StringFlag{Name: "dst-credential", Usage: "appliance certificate `FILE` for the destination"},
			&cli.StringSliceFlag{Name: "identity", Aliases: []string{"i"}, Usage: "age identity `FILE` of a custodian: where the source has rotated its masking key, the destination takes it over, as an admin"}),
	}
}

func (p *program) synckey(cc *cli.Context) (err error) {
	if cc.String("src") == "" || cc.String("dst") == "" {
		return usagef("name both clusters, with --src and --dst")
	}
	o, err := synckeyOptions(cc)
	if err != nil {
		return err
	}
	if o.Rate, err = rateOf(cc); err != nil {
		return err
	}
	if err := errors.Join(checkWatchFlags(cc), reportable(cc)); err != nil {
		return err
	}
	if cc.Bool("watch") {
		return p.watch(cc, o)
	}
	src, err := p.openSide(cc, srcSide)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := p.openSide(cc, dstSide)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()

	closeUsers, err := p.openUsers(cc, &o.UseCheck)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeUsers()) }()

	bar := p.progress(paced("synckey", o.Rate))
	defer bar.done()
	o.Progress = bar.update
	var r *synckey.Result
	if cc.Bool("dry-run") {
		plan, err := synckey.NewPlan(cc.Context, src, dst, o)
		if err != nil {
			return err
		}
		if r = plan.Result; o.Sign {
			err = plan.SignIfAllowed(cc.Context)
		}
		if err != nil {
			return err
		}
	} else {
		if err := p.followRotation(cc, src, dst); err != nil {
			return err
		}
		if r, err = synckey.Run(cc.Context, src, dst, o); err != nil {
			return p.brokenOff(cc, r, err)
		}
	}
	bar.done()
	return p.synced(cc, r)
}

func rateOf(cc *cli.Context) (r synckey.Rate, err error) {
	if !cc.IsSet("rate") {
		return r, nil
	}
	if r, err = synckey.ParseRate(cc.String("rate")); err != nil {
		return r, usagef("--rate: %v", err)
	}
	return r, nil
}

// paced names work that is held to a rate.
func paced(what string, r synckey.Rate) string {
	if r == (synckey.Rate{}) {
		return what
	}
	return what + " at most " + r.String()
}

// reportable makes sure that --report can be written, before anything is done that it is
// to tell of. It leaves no file where there was none.
func reportable(cc *cli.Context) error {
	path := cc.String("report")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		return errors.Join(f.Close(), os.Remove(path))
	}
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		return err
	}
	return f.Close()
}

// brokenOff reports how far a run came that ended with an error.
func (p *program) brokenOff(cc *cli.Context, r *synckey.Result, err error) error {
	if r == nil {
		return err
	}
	if path := cc.String("report"); path != "" {
		err = errors.Join(err, writeJSON(path, r))
	}
	if errors.Is(err, synckey.ErrLimit) || errors.Is(err, synckey.ErrMoved) {
		return err
	}
	return fmt.Errorf("%d objects were applied before it broke off: %w", r.Applied, err)
}

// synced prints the result; what remains or is in conflict is a doubt.
func (p *program) synced(cc *cli.Context, r *synckey.Result) error {
	if path := cc.String("report"); path != "" {
		if err := writeJSON(path, r); err != nil {
			return err
		}
	}
	if err := p.result(r, func(w io.Writer) { printSynckey(w, r, cc.Bool("dry-run")) }); err != nil {
		return err
	}
	if r.Use != nil && len(r.Use.Failures) > 0 || len(r.Conflicts) > 0 || len(r.Blocked) > 0 || cc.Bool("dry-run") && r.Remaining > r.Outside {
		return errPrinted
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func printSynckey(w io.Writer, r *synckey.Result, dryRun bool) {
	fmt.Fprintf(w, "%s\nfrom %s in %s to %s in %s\n", r.Lineage, r.Src.Name, r.Src.Region, r.Dst.Name, r.Dst.Region)
	rows := [][]string{}
	for _, d := range r.Details {
		rows = append(rows, []string{d.Ref.String(), d.Kind, d.Class, d.Label, strings.Join(d.What, " ")})
	}
	if len(rows) > 0 {
		table(w, []string{"REFERENCE", "KIND", "DIFFERENCE", "LABEL", "WHAT"}, rows)
	}
	fmt.Fprintf(w, "%d new, %d changed, %d destroyed at the source, %d destroyed at the destination, %d only at the destination, %d users and policies, %d conflicts, %d blocked%s\n",
		r.Missing, r.Changed, r.DestroyedAtSrc, r.DestroyedAtDst, r.OnlyAtDst, r.Users, len(r.Conflicts), len(r.Blocked), superseded(r)+outside(r))
	printLeft(w, r.Left)
	fmt.Fprintf(w, "difference learned in %d round trip%s, %s of sketch\n", r.RoundTrips, map[bool]string{true: "", false: "s"}[r.RoundTrips == 1], size(r.SketchBytes))
	if dryRun {
		if r.Refused != "" {
			fmt.Fprintf(w, "it would be refused: %s\n", r.Refused)
		}
		fmt.Fprintln(w, "nothing was changed (dry run)")
		return
	}
	printUsed(w, r.Use)
	equal := map[bool]string{true: "the roots are equal", false: fmt.Sprintf("%d objects still differ", r.Remaining)}[r.RootsEqual]
	fmt.Fprintf(w, "%d applied, %s, %s; %s\n", r.Applied, size(r.ObjectBytes), paced(fmt.Sprintf("%.2f s", r.Seconds), r.Rate), equal)
}

// superseded tells how many keys another birth stands above, if any.
func superseded(r *synckey.Result) string {
	if r.Superseded == 0 {
		return ""
	}
	return fmt.Sprintf(", %d superseded", r.Superseded)
}

// outside tells what the filter leaves out, if anything.
func outside(r *synckey.Result) string {
	if r.Outside == 0 {
		return ""
	}
	return fmt.Sprintf(", %d outside the filter", r.Outside)
}

// shownLeft bounds the lines about what stays different; --json has them all.
const shownLeft = 50

func printLeft(w io.Writer, left []synckey.Left) {
	for i, l := range left {
		if i == shownLeft {
			fmt.Fprintf(w, "and %d more; --json lists them\n", len(left)-i)
			return
		}
		fmt.Fprintf(w, "stays different: %s %s, %s: %s\n", l.Kind, l.Ref, l.Class, l.Reason)
	}
}
