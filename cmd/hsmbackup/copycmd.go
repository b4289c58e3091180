package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

// storeKeys are the keys of one of two stores, from the environment; zero: both
// have the usual ones.
func storeKeys(s side) storage.Keys {
	name := "HSMBACKUP_" + string(s)
	access, secret := os.Getenv(name+"ACCESS_KEY"), os.Getenv(name+"SECRET_KEY")
	if access == "" || secret == "" {
		return storage.Keys{}
	}
	return storage.NewKeys(access, secret, os.Getenv(name+"SESSION_TOKEN"))
}

// withLock has the store lock what is put, if --lock-for says so.
func withLock(cc *cli.Context, store storage.Store) (storage.Store, error) {
	mode, err := lockMode(cc)
	if err == nil && cc.IsSet("lock-mode") && !cc.IsSet("lock-for") {
		err = usagef("--lock-mode locks nothing without --lock-for")
	}
	if err != nil || !cc.IsSet("lock-for") {
		return store, err
	}
	d := cc.Duration("lock-for")
	if d <= 0 {
		return nil, usagef("--lock-for %s: want a time to come", d)
	}
	return backup.WithLock(store, mode, d)
}

func lockMode(cc *cli.Context) (storage.LockMode, error) {
	mode, err := storage.ParseLockMode(cc.String("lock-mode"))
	if err != nil {
		return "", usagef("--lock-mode %s: want governance or compliance", cc.String("lock-mode"))
	}
	return mode, nil
}

// lockView is a lock as --json prints it.
type lockView struct {
	ID      string           `json:"id"`
	Mode    storage.LockMode `json:"mode"`
	Until   time.Time        `json:"until"`
	Objects int              `json:"objects"`
}

func (p *program) lockSnapshot(cc *cli.Context, store storage.Store, id string) error {
	mode, err := lockMode(cc)
	if err != nil {
		return err
	}
	until := time.Now().Add(cc.Duration("for"))
	if at := cc.Timestamp("until"); at != nil {
		until = *at
	}
	if cc.IsSet("for") == cc.IsSet("until") || !until.After(time.Now()) {
		return usagef("snapshots lock: say --for a time or --until one to come")
	}
	l, err := backup.Lock(cc.Context, store, id, storage.Retention{Mode: mode, Until: until}, backup.OpenOptions{})
	if err != nil {
		return err
	}
	v := lockView{ID: l.ID, Mode: l.Mode, Until: l.Until.UTC(), Objects: l.Objects}
	weaker := mode == storage.Compliance && l.Mode != mode
	err = p.result(v, func(w io.Writer) {
		fmt.Fprintf(w, "snapshot %s: %d objects are locked (%s) at least until %s\n", v.ID, v.Objects, v.Mode, v.Until.Format(time.RFC3339))
		if weaker {
			fmt.Fprintln(w, "some were locked in mode governance before, and stay so until that lock has ended: who may bypass governance can delete them")
		}
	})
	if err == nil && weaker {
		return errPrinted
	}
	return err
}

// copyView is what copy --all --json prints.
type copyView struct {
	Copies  []*backup.CopyReport `json:"copies"`
	Skipped []string             `json:"skipped"` // and why
	Failed  []string             `json:"failed"`  // damaged at the source, and why
}

func (p *program) copySnapshots(cc *cli.Context, _ storage.Store, id string) error {
	if cc.String("from") == "" || cc.String("to") == "" || cc.Bool("all") && id != "" {
		return usagef("snapshots copy needs --from LOCATION and --to LOCATION, and an ID or --all")
	}
	tags, err := tagsOf(cc.StringSlice("tag"))
	if err != nil {
		return err
	}
	from, err := open.OpenWith(cc.Context, cc.String("from"), storeKeys(srcSide))
	if err != nil {
		return err
	}
	to, err := open.OpenWith(cc.Context, cc.String("to"), storeKeys(dstSide))
	if err != nil {
		return err
	}
	if fmt.Sprint(from) == fmt.Sprint(to) {
		return usagef("%v is the source and the destination: a copy belongs elsewhere", from)
	}
	if to, err = withLock(cc, to); err != nil {
		return err
	}
	bar := p.progress("copy")
	defer bar.done()
	o := backup.CopyOptions{Source: fmt.Sprint(from), Tags: tags, Software: version(), Progress: bar.backup}
	if s := cc.String("lineage"); s != "" {
		l, err := hsm.ParseLineage(s)
		if err != nil {
			return err
		}
		o.Trust = &l
	}
	if cc.Bool("all") {
		return p.copyAll(cc, from, to, o, bar)
	}
	r, err := backup.Copy(cc.Context, from, to, id, o)
	if err != nil {
		return opened(err, exitFailed)
	}
	bar.done()
	return p.result(r, func(w io.Writer) { printCopy(w, r) })
}

// copyAll copies what is READY at the source, the oldest first, and passes over
// what was deleted at the destination. One that is damaged at the source does not keep
// the others from being copied; it is an error in the end.
func (p *program) copyAll(cc *cli.Context, from, to storage.Store, o backup.CopyOptions, bar *progress) error {
	inv, err := backup.TakeInventory(cc.Context, from)
	if err != nil {
		return err
	}
	v := copyView{Copies: []*backup.CopyReport{}, Skipped: []string{}, Failed: []string{}}
	var failed error
	for _, e := range inv.Snapshots {
		if e.State != backup.StateReady {
			continue
		}
		r, err := (*backup.CopyReport)(nil), e.Err
		if err == nil {
			r, err = backup.Copy(cc.Context, from, to, e.ID, o)
		}
		if e.Err != nil || backup.SourceDamaged(err) {
			v.Failed = append(v.Failed, err.Error())
			failed = cmp.Or(failed, opened(err, exitFailed))
			continue
		}
		if backup.WasDeleted(err) {
			v.Skipped = append(v.Skipped, err.Error())
			continue
		}
		if err != nil { // of a store, and the others would fail as well
			failed = opened(err, exitFailed)
			v.Failed = append(v.Failed, err.Error())
			break
		}
		v.Copies = append(v.Copies, r)
	}
	bar.done()
	err = p.result(v, func(w io.Writer) { printCopies(w, v) })
	if failed != nil && p.json { // the document says it
		failed = errPrintedFailed
	}
	return cmp.Or(err, failed)
}

func printCopies(w io.Writer, v copyView) {
	for _, r := range v.Copies {
		printCopy(w, r)
	}
	for _, s := range v.Skipped {
		fmt.Fprintln(w, "passed over:", s)
	}
	for _, s := range v.Failed {
		fmt.Fprintln(w, "not copied:", s)
	}
}

func printCopy(w io.Writer, r *backup.CopyReport) {
	what := fmt.Sprintf("copied: %d objects, %s; %d were there", r.Copied, size(r.Bytes), r.Present)
	if r.Already && r.Copied == 0 {
		what = "was there already, whole"
	}
	fmt.Fprintf(w, "snapshot %s %s\n", r.ID, what)
	printNotes(w, r.Notes)
}
