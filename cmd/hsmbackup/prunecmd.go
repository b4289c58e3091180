package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/storage"
)

// The rules of retention that are flags.
var (
	keepCounts  = []string{"last", "hourly", "daily", "weekly", "monthly", "yearly"}
	keepPeriods = []string{"within", "within-hourly", "within-daily", "within-weekly", "within-monthly", "within-yearly"}
)

func policyFlagNames() []string {
	names := []string{"keep-tag", "retention-days"}
	for _, rule := range slices.Concat(keepCounts, keepPeriods) {
		names = append(names, "keep-"+rule)
	}
	return names
}

func policyFlags() []cli.Flag {
	flags := []cli.Flag{
		&cli.IntFlag{Name: "retention-days", Usage: "keep what is younger than so many `DAYS`, 7 to 379 (90 if no rule is named)"},
		&cli.StringSliceFlag{Name: "keep-tag", Usage: "keep what has all of these `TAGS`: KEY or KEY=VALUE, separated by commas; '' for no tags"},
	}
	for _, rule := range keepCounts {
		usage := fmt.Sprintf("keep the newest of each of the last `N` %s snapshots, or unlimited", rule)
		if rule == "last" {
			usage = "keep the last `N` snapshots, or unlimited"
		}
		flags = append(flags, &cli.StringFlag{Name: "keep-" + rule, Usage: usage})
	}
	for _, rule := range keepPeriods {
		which := strings.TrimPrefix(strings.TrimPrefix(rule, "within"), "-")
		flags = append(flags, &cli.StringFlag{Name: "keep-" + rule, Usage: strings.ReplaceAll(fmt.Sprintf("keep all %s snapshots within `PERIOD` before the newest, such as 1y6m7d12h", which), "  ", " ")})
	}
	return flags
}

// policyOf reads the rules from the flags. Without any it is CloudHSM's default.
func policyOf(cc *cli.Context) (p backup.Policy, err error) {
	if !slices.ContainsFunc(policyFlagNames(), cc.IsSet) {
		p.Days = backup.DefaultRetentionDays
		return p, nil
	}
	counts := []*int{&p.Last, &p.Hourly, &p.Daily, &p.Weekly, &p.Monthly, &p.Yearly}
	for i, rule := range keepCounts {
		if *counts[i], err = countOf(cc.String("keep-"+rule), rule); err != nil {
			return p, err
		}
	}
	periods := []*backup.Period{&p.Within, &p.WithinHourly, &p.WithinDaily, &p.WithinWeekly, &p.WithinMonthly, &p.WithinYearly}
	for i, rule := range keepPeriods {
		if !cc.IsSet("keep-" + rule) {
			continue
		}
		if *periods[i], err = backup.ParsePeriod(cc.String("keep-" + rule)); err != nil {
			return p, fmt.Errorf("--keep-%s: %w", rule, err)
		}
	}
	for _, tags := range cc.StringSlice("keep-tag") {
		p.Tags = append(p.Tags, backup.ParseTagList(tags))
	}
	if p.Days = cc.Int("retention-days"); cc.IsSet("retention-days") && p.Days == 0 {
		p.Days = -1 // named, and out of bounds
	}
	return p, p.Check()
}

func countOf(s, rule string) (int, error) {
	switch s {
	case "":
		return 0, nil
	case "unlimited":
		return backup.Unlimited, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < backup.Unlimited {
		return 0, usagef("--keep-%s %s: want a number, or unlimited", rule, s)
	}
	return n, nil
}

func (p *program) pruneSnapshots(cc *cli.Context, store storage.Store, _ string) error {
	policy, err := policyOf(cc)
	if err != nil {
		return err
	}
	if cc.Duration("grace") < 0 {
		return usagef("--grace %s is in the past", cc.Duration("grace"))
	}
	bar := p.progress("prune")
	defer bar.done()
	plan, err := backup.PlanPrune(cc.Context, store, backup.PruneOptions{Policy: policy, Grace: cc.Duration("grace"), Now: cc.Bool("now"), Software: version(), Progress: bar.backup})
	if err != nil {
		return err
	}
	if !p.json {
		printPlan(plainWriter{p.out}, plan)
	}
	if cc.Bool("dry-run") {
		return p.result(map[string]any{"dry_run": true, "plan": plan}, func(w io.Writer) { fmt.Fprintln(w, "nothing was changed (dry run)") })
	}
	r, err := plan.Execute(cc.Context, store)
	if err != nil {
		return err
	}
	bar.done()
	return p.result(map[string]any{"dry_run": false, "plan": plan, "done": r}, func(w io.Writer) { printPruned(w, r) })
}

// printPlan shows what is going to happen.
func printPlan(w io.Writer, plan *backup.PrunePlan) {
	rows := [][]string{}
	for _, s := range plan.Snapshots {
		due := ""
		if !s.Due.IsZero() {
			due = s.Due.Local().Format(time.DateTime)
		}
		begun := ""
		if !s.Begun.IsZero() {
			begun = s.Begun.Local().Format(time.DateTime)
		}
		rows = append(rows, []string{s.ID, begun, s.Cluster, string(s.Action), due, strings.Join(s.Reasons, "; ")})
	}
	table(w, []string{"ID", "BEGUN", "CLUSTER", "PLAN", "GONE AFTER", "BECAUSE"}, rows)
	fmt.Fprintf(w, "objects that nothing needs: %d to remove now, %s; %d later, %s\n", len(plan.Objects), size(plan.Bytes), plan.Later, size(plan.LaterSize))
	if plan.Held != "" {
		fmt.Fprintln(w, "no object is removed now:", plan.Held)
	}
	for _, n := range plan.Notes {
		fmt.Fprintln(w, "note:", n)
	}
}

func printPruned(w io.Writer, r *backup.PruneReport) {
	fmt.Fprintf(w, "%d pending deletion now, %d removed; %d objects removed, %s\n", len(r.Marked), len(r.Removed), r.Objects, size(r.Bytes))
	for what, ids := range map[string][]string{"changed meanwhile, and left alone": r.Skipped, "kept by a lock": r.Locked} {
		if len(ids) > 0 {
			fmt.Fprintf(w, "%s: %s\n", what, strings.Join(ids, ", "))
		}
	}
}

func (p *program) keepSnapshot(cc *cli.Context, store storage.Store, id string) error {
	s, err := backup.Keep(cc.Context, store, id, !cc.Bool("no-keep"), version())
	return p.changed(s, err)
}

func (p *program) deleteSnapshot(cc *cli.Context, store storage.Store, id string) error {
	s, err := backup.Delete(cc.Context, store, id, version())
	return p.changed(s, err)
}

func (p *program) undeleteSnapshot(cc *cli.Context, store storage.Store, id string) error {
	s, err := backup.Undelete(cc.Context, store, id, version())
	return p.changed(s, err)
}

// changed prints the state of a snapshot after a change.
func (p *program) changed(s *backup.Entry, err error) error {
	if err != nil {
		return err
	}
	return p.result(statusView(*s), func(w io.Writer) { fmt.Fprintf(w, "snapshot %s: %s\n", s.ID, stateOf(*s)) })
}
