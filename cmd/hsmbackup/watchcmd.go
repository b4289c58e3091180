package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// watchFlags make synckey go on by itself.
func watchFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "watch", Usage: "go on, looking each interval and applying what differs, until the process is told to end"},
		&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "with --watch, the `TIME` from one look to the next"},
		&cli.BoolFlag{Name: "keep-watching", Usage: "with --watch, go on when a limit refuses a plan: nothing of it is applied, and it is made again once the clusters have moved"},
		&cli.StringFlag{Name: "metrics", Usage: "with --watch, serve /metrics, /healthz and /readyz at `ADDRESS` (:9106 is of this machine only)"},
	}
}

func checkWatchFlags(cc *cli.Context) error {
	for _, name := range []string{"interval", "keep-watching", "metrics"} {
		if cc.IsSet(name) && !cc.Bool("watch") {
			return usagef("--%s goes with --watch", name)
		}
	}
	switch {
	case cc.Bool("watch") && cc.Bool("dry-run"):
		return usagef("--dry-run does not go with --watch")
	case cc.Duration("interval") <= 0:
		return usagef("--interval %s: want a time such as 1s or 1m", cc.Duration("interval"))
	}
	return nil
}

// watch reconciles until the process is told to end. Both clusters may come later
// than this process, and go.
func (p *program) watch(cc *cli.Context, o synckey.Options) (err error) {
	src, err := p.patientlyOpen(cc.Context, "synckey", func() (*cluster.Cluster, error) { return p.openSide(cc, srcSide) })
	if err != nil || src == nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := p.patientlyOpen(cc.Context, "synckey", func() (*cluster.Cluster, error) { return p.openSide(cc, dstSide) })
	if err != nil || dst == nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	o.Progress = p.watchProgress(o.Rate)
	w := synckey.NewWatch(src, dst, synckey.WatchOptions{Options: o, Interval: cc.Duration("interval"), Patient: cc.Bool("keep-watching"), Event: p.watchEvent})
	if err := p.serveWatch(cc, w); err != nil {
		return err
	}
	p.eventOf("synckey", "started", "interval", cc.Duration("interval").String(), "src", src.Profile().ID.String(), "dst", dst.Profile().ID.String())
	return p.watched(cc, w, w.Run(cc.Context))
}

// watched reports on a watch that has ended.
func (p *program) watched(cc *cli.Context, w *synckey.Watch, err error) error {
	st := w.Status()
	if path := cc.String("report"); path != "" {
		err = errors.Join(err, writeJSON(path, st))
	}
	if err != nil {
		return err
	}
	p.eventOf("synckey", "ended", "looks", st.Looks, "applied", st.Applied)
	return p.result(st, func(w io.Writer) {
		fmt.Fprintf(w, "%d looks, %d applied, %s of sketches, %s of objects; lag %.3f s (p50), %.3f s (p99), of the last ones applied\n",
			st.Looks, st.Applied, size(st.SketchBytes), size(st.ObjectBytes), st.LagP50, st.LagP99)
	})
}

// watchProgress shows how far each plan is that takes longer than a second.
func (p *program) watchProgress(r synckey.Rate) func(done, total, bytes int64) {
	var bar *progress
	return func(done, total, bytes int64) {
		if bar == nil {
			bar = p.progress(paced("synckey", r))
		}
		if bar.update(done, total, bytes); done >= total {
			bar.done()
			bar = nil
		}
	}
}

func (p *program) watchEvent(e synckey.Event) {
	say := func(facts ...any) { p.eventOf("synckey", string(e.Kind), facts...) }
	switch e.Kind {
	case synckey.EventApplied:
		r := e.Result
		say("applied", r.Applied, "new", r.Missing, "changed", r.Changed, "destroyed_at_src", r.DestroyedAtSrc, "only_at_dst", r.OnlyAtDst, "users", r.Users,
			"sketch_bytes", r.SketchBytes, "object_bytes", r.ObjectBytes, "seconds", r.Seconds, "lag_seconds", e.Lag.Seconds())
	case synckey.EventLeft:
		one := e.Result.Left[0]
		say("left", len(e.Result.Left), "conflicts", len(e.Result.Conflicts), "blocked", len(e.Result.Blocked), "first", one.Ref.String(), "reason", one.Reason)
	case synckey.EventAway:
		say("src", joinIDs(e.SrcAway), "dst", joinIDs(e.DstAway))
	case synckey.EventRefused, synckey.EventFailed:
		say("error", e.Err.Error(), "failures", e.Failures, "retry_seconds", e.Retry.Seconds(), "hint", judge(e.Err).hint)
	case synckey.EventRecovered:
		say("failures", e.Failures, "after_seconds", e.For.Seconds())
	default:
		say()
	}
}

// watchMetrics describe a watch.
var watchMetrics = []metrics.Desc{
	{Name: "hsmbackup_synckey_up", Help: "1 if the last look at both clusters succeeded."},
	{Name: "hsmbackup_synckey_roots_equal", Help: "1 if all HSMs of both clusters that answered held the same in the last look."},
	{Name: "hsmbackup_synckey_behind_seconds", Help: "Time since the oldest difference that is to be applied, and is not yet, was first seen."},
	{Name: "hsmbackup_synckey_lag_seconds", Help: "Time from the first sight of a difference until it was durable, of the last 10,000 objects applied.", Labels: []string{"quantile"}},
	{Name: "hsmbackup_synckey_differences", Help: "Objects that differed in the last look, before anything of it was applied.", Labels: []string{"class"}},
	{Name: "hsmbackup_synckey_left", Help: "Objects that differ and are not to be applied: conflicts, blocked ones, those not asked for."},
	{Name: "hsmbackup_synckey_hsms_away", Help: "HSMs that did not answer the last look.", Labels: []string{"side"}},
	{Name: "hsmbackup_synckey_success_age_seconds", Help: "Time since a look last left nothing to apply."},
	{Name: "hsmbackup_synckey_looks_total", Help: "Looks, whatever became of them.", Counter: true},
	{Name: "hsmbackup_synckey_plans_total", Help: "Looks that found different roots and learned the difference.", Counter: true},
	{Name: "hsmbackup_synckey_applied_total", Help: "Objects that changed a side.", Counter: true},
	{Name: "hsmbackup_synckey_failures_total", Help: "Looks that failed.", Counter: true},
	{Name: "hsmbackup_synckey_refusals_total", Help: "Looks whose plan a limit refused.", Counter: true},
	{Name: "hsmbackup_synckey_sketch_bytes_total", Help: "Bytes of sketches of one side.", Counter: true},
	{Name: "hsmbackup_synckey_object_bytes_total", Help: "Bytes of masked objects inserted.", Counter: true},
}

func (p *program) serveWatch(cc *cli.Context, w *synckey.Watch) error {
	r := metrics.NewRegistry(version())
	r.Collect(watchMetrics, func(set func(string, float64, ...string)) { showWatch(w.Status(), time.Now(), set) })
	late := 3*cc.Duration("interval") + lateBy
	return p.serveMetrics(cc, "synckey", r, metrics.Check{Name: "synckey", Run: func(context.Context) error { return upToDate(w.Status(), time.Now(), late) }})
}

func showWatch(st synckey.Status, now time.Time, set func(string, float64, ...string)) {
	flag := map[bool]float64{true: 1}
	set("hsmbackup_synckey_up", flag[st.Failing == nil && st.Looks > 0])
	set("hsmbackup_synckey_roots_equal", flag[st.Level])
	set("hsmbackup_synckey_behind_seconds", float64(st.Behind))
	for quantile, lag := range map[string]synckey.Seconds{"0.5": st.LagP50, "0.99": st.LagP99, "1": st.LagMax} {
		set("hsmbackup_synckey_lag_seconds", float64(lag), quantile)
	}
	for class, n := range st.Differences {
		set("hsmbackup_synckey_differences", float64(n), strings.ReplaceAll(class, " ", "_"))
	}
	set("hsmbackup_synckey_left", float64(st.Left))
	set("hsmbackup_synckey_hsms_away", float64(len(st.SrcAway)), "src")
	set("hsmbackup_synckey_hsms_away", float64(len(st.DstAway)), "dst")
	if !st.Success.IsZero() { // otherwise it is unknown and not shown
		set("hsmbackup_synckey_success_age_seconds", now.Sub(st.Success).Seconds())
	}
	for name, n := range map[string]int64{
		"looks": int64(st.Looks), "plans": int64(st.Plans), "applied": int64(st.Applied), "failures": int64(st.Failures), "refusals": int64(st.Refusals),
		"sketch_bytes": st.SketchBytes, "object_bytes": st.ObjectBytes,
	} {
		set("hsmbackup_synckey_"+name+"_total", float64(n))
	}
}

// upToDate tells why the clusters may differ, or nil.
func upToDate(st synckey.Status, now time.Time, late time.Duration) error {
	switch {
	case st.Success.IsZero():
		return errors.New("no look has succeeded yet")
	case now.Sub(st.Success) > late:
		return fmt.Errorf("the last look that left nothing to apply was %s ago", now.Sub(st.Success).Round(time.Second))
	}
	return nil
}
