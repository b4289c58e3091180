package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/storage"
)

// everyFlags make snapshot go on by itself.
func everyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: "every", Usage: "go on, with a snapshot each `INTERVAL` (5s, 1h), until the process is told to end"},
		&cli.StringFlag{Name: "metrics", Usage: "with --every, serve /metrics, /healthz and /readyz at `ADDRESS` (:9105 is of this machine only)"},
	}
}

func checkEveryFlags(cc *cli.Context) error {
	switch {
	case !cc.IsSet("every") && cc.IsSet("metrics"):
		return usagef("--metrics goes with --every")
	case !cc.IsSet("every"):
		return nil
	case cc.Duration("every") <= 0:
		return usagef("--every %s: want a time such as 5s or 1h", cc.Duration("every"))
	case cc.Bool("full"):
		return usagef("--full does not go with --every: a full snapshot is taken when one is needed")
	}
	return nil
}

// every takes snapshots until the process is told to end. Cluster and store may
// come later than this process, and go.
func (p *program) every(cc *cli.Context, store storage.Store, o backup.TakeOptions) (err error) {
	c, err := p.patiently(cc)
	if err != nil || c == nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if o.Recipients, err = p.recipients(cc, c); err != nil {
		return err
	}
	s := backup.NewSeries(clone.Origin(c), store, o)
	if err := p.serveSeries(cc, s); err != nil {
		return err
	}
	p.event("started", "interval", cc.Duration("every").String(), "to", cc.String("to"))
	err = s.Every(cc.Context, backup.EveryOptions{Interval: cc.Duration("every"), Event: p.seriesEvent})
	if err == nil {
		p.event("ended", "newest", s.Status().Newest)
	}
	return err
}

// patiently opens the cluster of --cluster; see patientlyOpen.
func (p *program) patiently(cc *cli.Context) (*cluster.Cluster, error) {
	return p.patientlyOpen(cc.Context, "snapshots", func() (*cluster.Cluster, error) {
		return p.open(cc.Context, cc.String("cluster"), statusLogin(cc))
	})
}

// patientlyOpen opens a cluster, and waits for it as long as nothing but its
// absence is in the way. It returns nil if the process is told to end meanwhile.
func (p *program) patientlyOpen(ctx context.Context, topic string, open func() (*cluster.Cluster, error)) (*cluster.Cluster, error) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		c, err := open()
		if err == nil || ctx.Err() == nil && !errors.Is(err, cluster.ErrNoHSM) && !errors.Is(err, hsm.ErrUnavailable) {
			return c, err
		}
		if wait == time.Second && ctx.Err() == nil {
			p.eventOf(topic, "waiting", "error", err.Error())
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// event is eventOf of what works on snapshots.
func (p *program) event(what string, facts ...any) { p.eventOf("snapshots", what, facts...) }

// eventOf reports one thing that happened, as one line on standard error: of the
// log, or with --json a JSON object whose first field is "event".
func (p *program) eventOf(topic, what string, facts ...any) {
	if !p.json {
		p.log.Info(topic+": "+what, facts...)
		return
	}
	doc := map[string]any{"event": what, "time": time.Now().UTC().Format(time.RFC3339Nano)}
	for i := 0; i+1 < len(facts); i += 2 {
		doc[facts[i].(string)] = facts[i+1]
	}
	if b, err := json.Marshal(doc); err == nil {
		fmt.Fprintf(p.err, "%s\n", b)
	}
}

func (p *program) seriesEvent(e backup.Event) {
	switch kind := string(e.Kind); e.Kind {
	case backup.EventTaken:
		r := e.Report
		p.event(kind, "id", r.ID, "parent", r.Parent, "objects", r.Objects, "new_objects", r.NewObjects, "merged", r.Merged, "bytes_stored", r.BytesStored, "seconds", r.Elapsed.Seconds())
	case backup.EventFailed:
		p.event(kind, "error", e.Err.Error(), "failures", e.Failures, "retry_seconds", e.Retry.Seconds(), "hint", judge(e.Err).hint)
	case backup.EventRecovered:
		p.event(kind, "failures", e.Failures, "after_seconds", e.For.Seconds())
	case backup.EventMissing:
		p.event(kind, "hsms", joinIDs(e.Report.Coverage.Missing), "answered", len(e.Report.Coverage.Answered))
	default:
		p.event(kind, "note", e.Note)
	}
}

// seriesMetrics describe a series. The live RPO is a bound: a key that was
// acknowledged longer ago is in the store, if an HSM that answers held it.
var seriesMetrics = []metrics.Desc{
	{Name: "hsmbackup_snapshot_age_seconds", Help: "Time since the newest snapshot was begun."},
	{Name: "hsmbackup_snapshot_rpo_seconds", Help: "No key acknowledged longer ago than this, and held by an HSM that answers, is missing from the store; the age of the oldest key not yet in the store is at most this."},
	{Name: "hsmbackup_snapshot_hsms_missing", Help: "HSMs that did not answer the last take."},
	{Name: "hsmbackup_snapshot_failing", Help: "1 if the last take failed."},
	{Name: "hsmbackup_snapshot_takes_total", Help: "Takes, whatever became of them.", Counter: true},
	{Name: "hsmbackup_snapshot_unchanged_total", Help: "Takes that found nothing new.", Counter: true},
	{Name: "hsmbackup_snapshot_failures_total", Help: "Takes that failed.", Counter: true},
	{Name: "hsmbackup_snapshot_stored_bytes_total", Help: "Bytes stored.", Counter: true},
}

func (p *program) serveSeries(cc *cli.Context, s *backup.Series) error {
	r := metrics.NewRegistry(version())
	r.Collect(seriesMetrics, func(set func(string, float64, ...string)) { showSeries(s.Status(), time.Now(), set) })
	late := 3 * cc.Duration("every")
	return p.serveMetrics(cc, "snapshots", r, metrics.Check{Name: "snapshots", Run: func(context.Context) error { return current(s.Status(), time.Now(), late) }})
}

// serveMetrics serves at the address of --metrics, if there is one, until the
// process is told to end.
func (p *program) serveMetrics(cc *cli.Context, topic string, r *metrics.Registry, check metrics.Check) error {
	address := cc.String("metrics")
	if address == "" {
		return nil
	}
	server, err := metrics.Listen(address, r, check)
	if err != nil {
		return err
	}
	p.eventOf(topic, "metrics", "url", "http://"+server.Address()+"/metrics")
	go func() {
		if err := server.Serve(cc.Context); err != nil {
			p.eventOf(topic, "metrics", "error", err.Error())
		}
	}()
	return nil
}

func showSeries(st backup.Status, now time.Time, set func(string, float64, ...string)) {
	if st.Newest != "" { // otherwise the ages are unknown and not shown
		set("hsmbackup_snapshot_age_seconds", now.Sub(st.Taken).Seconds())
		set("hsmbackup_snapshot_rpo_seconds", now.Sub(st.Covered).Seconds())
	}
	failing := 0.0
	if st.Failing != nil {
		failing = 1
	}
	set("hsmbackup_snapshot_failing", failing)
	set("hsmbackup_snapshot_hsms_missing", float64(len(st.Missing)))
	set("hsmbackup_snapshot_takes_total", float64(st.Takes))
	set("hsmbackup_snapshot_unchanged_total", float64(st.Unchanged))
	set("hsmbackup_snapshot_failures_total", float64(st.Failures))
	set("hsmbackup_snapshot_stored_bytes_total", float64(st.Bytes))
}

// lateBy is what a take may last beyond its interval before the series counts as
// behind.
const lateBy = 30 * time.Second

// current tells why the store is behind the cluster, or nil.
func current(st backup.Status, now time.Time, late time.Duration) error {
	switch {
	case st.Newest == "":
		return errors.New("no snapshot yet")
	case now.Sub(st.Covered) > late+lateBy:
		return fmt.Errorf("the store was last up to date %s ago", now.Sub(st.Covered).Round(time.Second))
	}
	return nil
}
