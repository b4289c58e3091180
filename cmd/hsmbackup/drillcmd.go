package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

func (p *program) drillCommand() *cli.Command {
	return &cli.Command{
		Name: "drill", Usage: "lose a region, for practice, and prove that nothing was lost", Action: p.drill,
		Description: "Without arguments the whole job runs by itself in a temporary folder: two regions of three HSM processes, users and keys of every type, a snapshot, its restore in region two, new keys, synckey, proof.\n\nWith --from a real snapshot is restored in an isolated place and every key in it is used.\n\nExamples:\n  hsmbackup drill\n  hsmbackup drill --from s3://backups/payments?region=eu-west-1 --identity custodian.txt",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "keys", Value: 100, Usage: "AES keys to make beside those of every type"},
			&cli.IntFlag{Name: "hsms", Value: 3, Usage: "HSM processes per region"},
			&cli.StringFlag{Name: "store", Usage: "object store `LOCATION` (default a folder)"},
			&cli.StringFlag{Name: "lineage", Usage: "trust only a snapshot signed by this `LINEAGE`, with --from"},
			&cli.StringFlag{Name: "from", Usage: "drill the newest snapshot at `LOCATION`"},
			&cli.StringFlag{Name: "snapshot", Usage: "the snapshot's `ID`, with --from"},
			&cli.StringSliceFlag{Name: "identity", Usage: "age identity `FILE` that opens the snapshot, with --from"},
			&cli.StringFlag{Name: "cluster", Usage: "compare with this live `CLUSTER`, with --from"},
			&cli.StringFlag{Name: "report", Usage: "also write the report as JSON to `FILE`"},
			&cli.StringFlag{Name: "html", Usage: "also write the report as a page to `FILE`"},
			&cli.BoolFlag{Name: "verbose", Usage: "show what the HSM processes say"},
		},
	}
}

func (p *program) drill(cc *cli.Context) error {
	dir, err := os.MkdirTemp("", "hsmbackup-drill-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var r *clone.Report
	if cc.IsSet("from") {
		r, err = p.drillSnapshot(cc, dir)
	} else {
		r, err = p.drillWhole(cc, dir)
	}
	if err != nil {
		return err
	}
	return p.drilled(cc, r)
}

func (p *program) drillWhole(cc *cli.Context, dir string) (*clone.Report, error) {
	location := cc.String("store")
	if location == "" {
		location = filepath.Join(dir, "store")
	}
	store, err := open.Open(cc.Context, location)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if cc.Int("keys") < 0 || cc.Int("hsms") < 1 {
		return nil, usagef("--keys must not be negative, --hsms at least 1")
	}
	log := io.Discard
	if cc.Bool("verbose") {
		log = p.err
	}
	steps := &drillSteps{p: p}
	defer steps.end()
	return clone.Drill(cc.Context, clone.DrillOptions{
		Executable: exe, Store: store, Dir: dir, Keys: cc.Int("keys"), HSMs: cc.Int("hsms"), Version: version(), Log: log,
		Step: steps.begin, Progress: steps.update,
	})
}

// drillSnapshot drills a real snapshot.
func (p *program) drillSnapshot(cc *cli.Context, dir string) (_ *clone.Report, err error) {
	store, err := open.Open(cc.Context, cc.String("from"))
	if err != nil {
		return nil, err
	}
	o, err := p.openOptions(cc, p.progress("read"))
	if err != nil {
		return nil, err
	}
	if len(o.Identities) == 0 {
		return nil, usagef("no identity: give --identity FILE for as many custodians as the threshold asks for")
	}
	if err := trustStore(cc.Context, store, o); err != nil {
		return nil, err
	}
	s, err := backup.Open(cc.Context, store, cc.String("snapshot"), o)
	if err != nil {
		return nil, opened(err, exitDoubt)
	}
	var live *cluster.Cluster
	if name := cc.String("cluster"); name != "" {
		if live, err = p.open(cc.Context, name, who{appliance: applianceFirst}); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, live.Close()) }()
	}
	p.step("restore snapshot " + s.ID() + " in an isolated place and use every key")
	return clone.DrillSnapshot(cc.Context, s, drillSpec(filepath.Join(dir, "clone"), cc.Int("hsms")), live)
}

// drillSpec describes the clone that a drill makes of a real snapshot. Its HSMs
// are never opened again, so the seal is a random passphrase that nobody keeps:
// what a drill that was killed leaves in the temporary folder opens for nobody.
func drillSpec(dir string, hsms int) server.Spec {
	const cheap = 1 // scrypt need not slow down who guesses at 128 random bits
	return server.Spec{
		Name: "drill", Region: "drill", Dir: dir, HSMs: hsms, MinCopies: 1, Version: version(), SealEnvelope: backup.SealEnvelope,
		Seal: func(string) (seal.Seal, error) { return seal.Passphrase(hsm.NewSecret([]byte(rand.Text())), cheap) },
	}
}

// drillSteps are the steps of a whole drill as they are shown: what begins, and how far
// it is if it takes longer than a second.
type drillSteps struct {
	p   *program
	bar atomic.Pointer[progress]
}

func (s *drillSteps) begin(what string) {
	s.end()
	s.p.step(what)
	s.bar.Store(s.p.progress("drill"))
}

func (s *drillSteps) update(done, total, bytes int64) {
	if done == 0 { // of another count: it has a rate of its own
		s.end()
		s.bar.Store(s.p.progress("drill"))
		return
	}
	s.bar.Load().update(done, total, bytes)
}

func (s *drillSteps) end() {
	if bar := s.bar.Load(); bar != nil {
		bar.done()
	}
}

// step says what a long job does now.
func (p *program) step(what string) {
	if !p.quiet {
		fmt.Fprintln(p.err, "drill:", what)
	}
}

func (p *program) drilled(cc *cli.Context, r *clone.Report) error {
	if path := cc.String("report"); path != "" {
		if err := writeJSON(path, r); err != nil {
			return err
		}
	}
	if path := cc.String("html"); path != "" {
		if err := writePage(path, r); err != nil {
			return err
		}
	}
	if err := p.result(r, r.Print); err != nil {
		return err
	}
	if !r.OK {
		return errPrinted
	}
	return nil
}

func writePage(path string, r *clone.Report) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = r.Page(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
