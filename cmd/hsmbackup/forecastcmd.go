package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

func (p *program) forecastSnapshots(cc *cli.Context, store storage.Store, _ string) error {
	policy, err := policyOf(cc)
	if err != nil {
		return err
	}
	o := backup.ForecastOptions{Policy: policy, Grace: cc.Duration("grace"), Pace: cc.Duration("every")}
	if o.Pace < 0 || o.Grace < 0 {
		return usagef("--every and --grace want a time that is not negative")
	}
	if s := cc.String("key"); s != "" {
		ref, err := hsm.ParseKeyRef(s)
		if err != nil {
			return err
		}
		o.Key = &ref
	}
	f, err := backup.MakeForecast(cc.Context, store, o)
	if err != nil {
		return err
	}
	return p.result(f, func(w io.Writer) { printForecast(w, f) })
}

func printForecast(w io.Writer, f *backup.Forecast) {
	open := "not before " + f.Until.Local().Format(time.DateOnly)
	at := func(t time.Time, zero string) string {
		if t.IsZero() {
			return zero
		}
		return t.Local().Format(time.DateTime)
	}
	rows := [][]string{}
	for _, e := range f.Snapshots {
		pending, gone := at(e.Pending, open), at(e.Gone, open)
		if e.Never {
			pending, gone = "never", "never"
		}
		rows = append(rows, []string{e.ID, e.Cluster, string(e.State), pending, gone, strings.Join(e.Reasons, "; ")})
	}
	table(w, []string{"ID", "CLUSTER", "STATE", "PENDING FROM", "GONE AFTER", "NOW KEPT BECAUSE"}, rows)
	k := f.Key
	if k == nil {
		return
	}
	for _, h := range k.Holders {
		how := "a restore brings it"
		if !h.Restorable {
			how = "destroyed by then; an older pack holds it still"
		}
		if !h.Locked.IsZero() {
			how += "; locked until " + at(h.Locked, "")
		}
		fmt.Fprintf(w, "key %s is in snapshot %s: %s; packs gone after %s\n", k.Ref, h.ID, how, at(h.Gone, open))
	}
	switch {
	case len(k.Holders) == 0 && k.Unnamed == 0:
		fmt.Fprintf(w, "key %s is in no snapshot\n", k.Ref)
		return
	case k.Unnamed > 0:
		fmt.Fprintf(w, "key %s is in %d packs that no snapshot needs, until a prune\n", k.Ref, k.Unnamed)
	}
	fmt.Fprintf(w, "it can be restored until %s, and is erased after %s\n", at(k.RestorableUntil, open), at(k.ErasedAfter, open))
}
