package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/storage"
)

// verifyView is a verification as --json prints it.
type verifyView struct {
	OK        bool     `json:"ok"`
	ID        string   `json:"id"`
	Level     string   `json:"level"`
	Packs     int      `json:"packs"`
	Checked   int      `json:"packs_checked"`
	Turn      uint64   `json:"turn"`             // of a sample
	Sample    []string `json:"sample,omitempty"` // the packs of a sample
	Objects   uint64   `json:"objects"`
	Bytes     uint64   `json:"bytes"`
	RootEqual bool     `json:"root_equal"`
	Envelope  string   `json:"envelope"`
	KeysUsed  int      `json:"keys_used"`
	Problems  []string `json:"problems"`
	Recorded  bool     `json:"recorded"`
	Note      string   `json:"note,omitempty"` // why it is not recorded
}

// verification is what to verify and how.
type verification struct {
	level   backup.Level
	sample  backup.Sample
	record  bool
	options backup.OpenOptions
}

func (p *program) verifySnapshots(cc *cli.Context, store storage.Store, id string) error {
	bar := p.progress("verify")
	defer bar.done()
	v, err := p.verification(cc, bar)
	if err != nil {
		return err
	}
	if !cc.Bool("all") {
		view, err := v.verify(cc.Context, store, id)
		if err != nil {
			return err
		}
		bar.done()
		return p.verified(view.OK, view, view)
	}
	if id != "" {
		return usagef("verify --all takes no ID")
	}
	all, err := backup.TakeInventory(cc.Context, store)
	if err != nil {
		return err
	}
	ok, views := true, []verifyView{}
	for _, s := range all.Snapshots {
		if s.State == backup.StateDeleted || s.State == backup.StateInProgress {
			continue
		}
		view := verifyView{ID: s.ID, Level: string(v.level), Problems: []string{}}
		if s.Err != nil {
			view.Problems = append(view.Problems, s.Err.Error())
		} else if checked, err := v.verify(cc.Context, store, s.ID); backup.Unreadable(err) {
			view.Problems = append(view.Problems, err.Error())
		} else if err != nil {
			return err
		} else {
			view = checked
		}
		ok = ok && view.OK
		views = append(views, view)
	}
	bar.done()
	return p.verified(ok, map[string]any{"ok": ok, "snapshots": views}, views...)
}

func (p *program) verification(cc *cli.Context, bar *progress) (v verification, err error) {
	if v.options, err = p.openOptions(cc, bar); err != nil {
		return v, err
	}
	switch v.level = backup.Level(cc.String("level")); v.level {
	case backup.LevelHashes, backup.LevelRoot, backup.LevelUse:
	default:
		return v, usagef("--level %s: want hashes, root or use", v.level)
	}
	v.record = !cc.Bool("no-record")
	if !cc.IsSet("sample") {
		if cc.IsSet("turn") {
			return v, usagef("--turn is of a --sample")
		}
		return v, nil
	}
	if v.sample.Share, err = backup.ParseShare(cc.String("sample")); err != nil {
		return v, err
	}
	if v.sample.Turn = cc.Uint64("turn"); !cc.IsSet("turn") {
		v.sample.Turn = backup.TurnOf(time.Now())
	}
	return v, nil
}

// verify verifies one snapshot, and leaves a record of it if it may.
func (v verification) verify(ctx context.Context, store storage.Store, id string) (verifyView, error) {
	level := v.level
	if level == backup.LevelUse {
		level = backup.LevelRoot
	}
	r, err := backup.VerifySample(ctx, store, id, level, v.sample, v.options)
	if err != nil {
		return verifyView{}, opened(err, exitDoubt)
	}
	view := verifyView{
		OK: r.OK(), ID: r.ID, Level: string(v.level), Packs: r.Packs, Checked: r.Checked, Turn: r.Turn, Sample: r.Chosen, Objects: r.Objects, Bytes: r.Bytes,
		RootEqual: r.RootEqual, Envelope: r.Envelope, Problems: []string{},
	}
	for _, problem := range r.Problems {
		view.Problems = append(view.Problems, fmt.Sprintf("%s: %v", problem.Object, problem.Err))
	}
	failures := 0
	if v.level == backup.LevelUse && view.OK {
		if failures, err = v.use(ctx, store, &view); err != nil {
			return view, err
		}
	}
	if v.record {
		if err := r.Record(ctx, store, v.level, view.KeysUsed, failures, version()); err != nil {
			view.Note = fmt.Sprintf("not recorded: %v", err)
		}
		view.Recorded = view.Note == ""
	}
	return view, nil
}

// use opens every key of the snapshot, or of the sample, in memory and uses it.
func (v verification) use(ctx context.Context, store storage.Store, view *verifyView) (failures int, err error) {
	s, err := backup.Open(ctx, store, view.ID, v.options)
	if err != nil {
		return 0, err
	}
	used, err := clone.UseAll(ctx, s.Only(v.sample))
	if err != nil {
		return 0, err
	}
	view.KeysUsed, view.OK = used.Keys, len(used.Failures) == 0
	view.Problems = append(view.Problems, used.Failures...)
	return len(used.Failures), nil
}

func (p *program) verified(ok bool, result any, views ...verifyView) error {
	err := p.result(result, func(w io.Writer) {
		for _, v := range views {
			v.print(w)
		}
	})
	if err == nil && !ok {
		return errPrinted
	}
	return err
}

func (v verifyView) print(w io.Writer) {
	fmt.Fprintf(w, "snapshot %s, level %s: %s\n%d packs, %d objects, %s, envelope %s\n", v.ID, v.Level, map[bool]string{true: "good", false: "DAMAGED"}[v.OK], v.Packs, v.Objects, size(int64(v.Bytes)), orNone(v.Envelope))
	if len(v.Sample) > 0 {
		fmt.Fprintf(w, "a sample of %d packs, turn %d:\n", v.Checked, v.Turn)
		for _, name := range v.Sample {
			fmt.Fprintln(w, "  "+name)
		}
	}
	if v.KeysUsed > 0 {
		fmt.Fprintf(w, "%d keys opened and used\n", v.KeysUsed)
	}
	for _, problem := range v.Problems {
		fmt.Fprintln(w, problem)
	}
	if v.Note != "" {
		fmt.Fprintln(w, "note:", v.Note)
	}
}
