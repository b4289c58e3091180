package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/synckey"
)

func (p *program) resolveCommand() *cli.Command {
	return &cli.Command{
		Name: "resolve", Usage: "decide which of two keys under one reference stands", Action: p.resolve,
		Description: "The same reference with two births is a conflict until a person decides. Without --yes the plan is shown and nothing changes.\n\nExamples:\n  hsmbackup synckey resolve --src ./east --dst ./west --key 0x00000000000026bf --keep src\n  hsmbackup synckey resolve --src ./east --dst ./west --key 0x00000000000026bf --keep src --keep-both --yes\n  hsmbackup synckey resolve --src ./east --key 0x00000000000026bf --keep BIRTH --yes     the HSMs of one cluster hold two births\n\nIt takes an admin, or the crypto user who owns both keys, on both sides: HSMBACKUP_SRC_PIN and HSMBACKUP_DST_PIN (and …_ROLE), falling back to HSMBACKUP_PIN.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "src", Usage: "one `CLUSTER`", Required: true},
			&cli.StringFlag{Name: "dst", Usage: "the other `CLUSTER`; without it, the HSMs of --src are in conflict with each other"},
			&cli.StringFlag{Name: "key", Usage: "key `REFERENCE` in conflict", Required: true},
			&cli.StringFlag{Name: "keep", Usage: "which key stands: that of src, that of dst, or that of a `BIRTH` as the plan shows it", Required: true},
			&cli.BoolFlag{Name: "keep-both", Usage: "keep the key that gives way too, under a reference of its own"},
			&cli.BoolFlag{Name: "yes", Usage: "carry the plan out"},
			&cli.StringFlag{Name: "plan", Usage: "only if the plan is still this `PLAN`, as shown before"},
			&cli.StringFlag{Name: "report", Usage: "also write the result as JSON to `FILE`"},
		},
	}
}

func (p *program) resolve(cc *cli.Context) (err error) {
	for _, name := range []string{"dst", "plan"} { // an empty variable in a script must not widen what is done
		if cc.IsSet(name) && cc.String(name) == "" {
			return usagef("--%s is empty", name)
		}
	}
	o := synckey.ResolveOptions{Keep: cc.String("keep"), KeepBoth: cc.Bool("keep-both"), Plan: cc.String("plan"), Version: version(), Asked: asked(cc)}
	if o.Ref, err = hsm.ParseKeyRef(cc.String("key")); err != nil {
		return usagef("--key: %v", err)
	}
	if err := reportable(cc); err != nil {
		return err
	}
	src, err := p.openPerson(cc, srcSide)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	var dst *cluster.Cluster
	if cc.String("dst") != "" {
		if dst, err = p.openPerson(cc, dstSide); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dst.Close()) }()
	}
	plan, err := synckey.NewResolution(cc.Context, src, dst, o)
	if err != nil {
		return err
	}
	r := plan.Result
	if !cc.Bool("yes") {
		if err := p.resolved(cc, r); err != nil {
			return err
		}
		return errPrinted // it is a conflict still
	}
	if err := plan.Apply(cc.Context); err != nil {
		if path := cc.String("report"); path != "" {
			err = errors.Join(err, writeJSON(path, r))
		}
		return err
	}
	if err := p.resolved(cc, r); err != nil || r.Resolved {
		return err
	}
	return errPrinted
}

// openPerson connects to one side with a person's login: an appliance decides nothing.
func (p *program) openPerson(cc *cli.Context, s side) (*cluster.Cluster, error) {
	flag, name := "src", "source"
	if s == dstSide {
		flag, name = "dst", "destination"
	}
	c, err := p.open(cc.Context, cc.String(flag), who{side: s, appliance: applianceNever})
	return c, sideError(name, s, err)
}

func (p *program) resolved(cc *cli.Context, r *synckey.Resolved) error {
	if path := cc.String("report"); path != "" {
		if err := writeJSON(path, r); err != nil {
			return err
		}
	}
	return p.result(r, func(w io.Writer) { printResolved(w, r, cc.Bool("yes")) })
}

func printResolved(w io.Writer, r *synckey.Resolved, applied bool) {
	fmt.Fprintf(w, "%s\nkey %s\n", r.Lineage, r.Ref)
	rows := [][]string{}
	for _, b := range r.Births {
		what := "destroyed"
		if !b.Destroyed {
			what = strings.TrimSpace(fmt.Sprintf("%s %d", b.KeyType, b.Size))
		}
		made := ""
		if !b.Created.IsZero() {
			made = b.Created.UTC().Format("2006-01-02T15:04:05Z")
		}
		rows = append(rows, []string{b.Birth, strings.Join(b.At, ", "), what, b.CheckValue, b.Owner, b.Label, made, b.Fate})
	}
	table(w, []string{"BIRTH", "AT", "KEY", "CHECK VALUE", "OWNER", "LABEL", "CREATED", "FATE"}, rows)
	away := r.Src.Away
	if r.Dst != nil {
		away = append(away[:len(away):len(away)], r.Dst.Away...)
	}
	for _, id := range away {
		fmt.Fprintf(w, "away: %s; it hears of the decision when it is back\n", id)
	}
	if !applied {
		fmt.Fprintf(w, "plan %s\nnothing was changed; --yes carries it out\n", r.Plan)
		return
	}
	for _, ref := range r.Kept {
		fmt.Fprintf(w, "kept as %s\n", ref)
	}
	said := map[bool]string{true: "resolved", false: "not all HSMs hold it yet; server-side sync or the same command brings it to them"}[r.Resolved]
	equal := map[bool]string{true: "the roots are equal", false: fmt.Sprintf("%d objects still differ; synckey brings them over", r.Remaining)}[r.RootsEqual]
	fmt.Fprintf(w, "%s; %s\n", said, equal)
}
