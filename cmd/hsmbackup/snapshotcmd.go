package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

func (p *program) snapshotCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshot", Usage: "back a cluster up: what is new since the last snapshot", Action: p.snapshot,
		Description: "LOCATION is a folder or file:///…, s3://BUCKET/PREFIX?region=…&endpoint=…, or minio://HOST:PORT/BUCKET/PREFIX?tls=false.\nThe host that takes snapshots can decrypt nothing: it needs the appliance certificate, and the HSMs say to whom to encrypt.\n\nExample: hsmbackup snapshot --cluster ./east --to s3://backups/payments?region=eu-west-1 --recipient age1…\n\nWith --every it goes on: one line on standard error for each thing that happens, with --json a JSON object. It waits for a cluster or store that is away, a second instance beside it does no harm, and SIGTERM ends it after the snapshot under way.",
		Flags: append(append(clusterFlags(), everyFlags()...),
			&cli.StringFlag{Name: "to", Required: true, Usage: "store `LOCATION`"},
			&cli.StringSliceFlag{Name: "recipient", Usage: "age `RECIPIENT` who can decrypt the packs beside the cluster's custodians"},
			&cli.BoolFlag{Name: "full", Usage: "write everything again"},
			&cli.BoolFlag{Name: "require-all", Usage: "refuse if an HSM does not answer"},
			&cli.DurationFlag{Name: "lock-for", Usage: "keep the snapshot, and all that it needs, from being deleted for this long (object lock)"},
			&cli.StringFlag{Name: "lock-mode", Value: "governance", Usage: "governance or compliance"},
			&cli.StringSliceFlag{Name: "tag", Usage: "`KEY=VALUE`, kept in clear"}),
	}
}

// snapshotView is a snapshot as --json prints it.
type snapshotView struct {
	ID          string          `json:"id"`
	Parent      string          `json:"parent"`
	Unchanged   bool            `json:"unchanged"`
	Objects     uint64          `json:"objects"`
	NewObjects  uint64          `json:"new_objects"`
	BytesStored uint64          `json:"bytes_stored"`
	Root        string          `json:"root"`
	Coverage    backup.Coverage `json:"coverage"`
	Seconds     float64         `json:"seconds"`
	Notes       []string        `json:"notes,omitempty"`
}

func (p *program) snapshot(cc *cli.Context) error {
	if err := checkEveryFlags(cc); err != nil {
		return err
	}
	tags, err := tagsOf(cc.StringSlice("tag"))
	if err != nil {
		return err
	}
	store, err := open.Open(cc.Context, cc.String("to"))
	if err != nil {
		return err
	}
	if store, err = withLock(cc, store); err != nil {
		return err
	}
	o := backup.TakeOptions{Full: cc.Bool("full"), RequireAll: cc.Bool("require-all"), Tags: tags}
	if cc.IsSet("every") {
		return p.every(cc, store, o)
	}
	return p.withNamed(cc, cc.String("cluster"), statusLogin(cc), func(ctx context.Context, c *cluster.Cluster) error {
		if o.Recipients, err = p.recipients(cc, c); err != nil {
			return err
		}
		bar := p.progress("snapshot")
		defer bar.done()
		o.Progress = bar.backup
		r, err := backup.Take(ctx, clone.Origin(c), store, o)
		if err != nil {
			return err
		}
		bar.done()
		return p.taken(r, c.Policy().MinCopies)
	})
}

// recipients are those of --recipient. Custodians read packs through the
// recovery envelope, so nobody need be named.
func (p *program) recipients(cc *cli.Context, c *cluster.Cluster) ([]string, error) {
	settings, err := c.Settings(cc.Context)
	if err != nil {
		return nil, err
	}
	recipients := cc.StringSlice("recipient")
	if len(recipients) == 0 && len(settings.Custodians) == 0 {
		return nil, usagef("nobody could open the snapshot: name custodians with cluster set --custodian, or one with --recipient age1…")
	}
	return recipients, p.adoptCustodians(cc, settings, recipients)
}

// backup adapts to package backup's progress.
func (g *progress) backup(b backup.Progress) {
	g.update(int64(b.Objects), int64(b.TotalObjects), b.Bytes)
}

// taken prints the snapshot. With as many HSMs away as a key needs copies, a
// key may be on those alone: that is a doubt.
func (p *program) taken(r *backup.Report, minCopies int) error {
	doubtful := len(r.Coverage.Missing) >= max(1, minCopies)
	if doubtful {
		r.Notes = append(r.Notes, fmt.Sprintf("%d HSMs did not answer, and keys need be on %d only: keys that are on those alone are not in the snapshot", len(r.Coverage.Missing), minCopies))
	}
	v := snapshotView{
		ID: r.ID, Parent: r.Parent, Unchanged: r.Unchanged, Objects: r.Objects, NewObjects: r.NewObjects, BytesStored: r.BytesStored, Root: hex.EncodeToString(r.Root.Sum[:]),
		Coverage: backup.Coverage{Answered: notNil(r.Coverage.Answered), Missing: notNil(r.Coverage.Missing)}, Seconds: r.Elapsed.Seconds(), Notes: r.Notes,
	}
	err := p.result(v, func(w io.Writer) {
		what := "full"
		if r.Parent != "" {
			what = "increment to " + r.Parent
		}
		if r.Unchanged {
			what = "nothing changed since"
		}
		fmt.Fprintf(w, "snapshot %s (%s): %d objects, %d new, %s stored, %.2f s\n", v.ID, what, v.Objects, v.NewObjects, size(int64(v.BytesStored)), v.Seconds)
		if len(v.Coverage.Missing) > 0 {
			fmt.Fprintf(w, "these HSMs did not answer: %s\n", joinIDs(v.Coverage.Missing))
		}
		for _, n := range r.Notes {
			fmt.Fprintln(w, "note:", n)
		}
	})
	if err == nil && doubtful {
		return errPrinted
	}
	return err
}

func tagsOf(pairs []string) (map[string]string, error) {
	tags := map[string]string{}
	for _, pair := range pairs {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return nil, usagef("tag %q: want KEY=VALUE", pair)
		}
		tags[k] = v
	}
	return tags, nil
}

// identityFlags open snapshots.
func identityFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "identity", Aliases: []string{"i"}, Usage: "age identity `FILE`; as many as the threshold of custodians asks for"},
		&cli.StringFlag{Name: "lineage", Usage: "trust only snapshots signed by this `LINEAGE` (cluster info shows it)"},
	}
}

// openOptions reads identities and the lineage to trust.
func (p *program) openOptions(cc *cli.Context, bar *progress) (backup.OpenOptions, error) {
	o := backup.OpenOptions{Progress: bar.backup}
	for _, path := range cc.StringSlice("identity") {
		b, err := hsm.ReadSmallFile(path)
		if err != nil {
			return o, err
		}
		ids, err := backup.ParseIdentityFile(b)
		clear(b)
		if err != nil {
			return o, fmt.Errorf("%s: %w", path, err)
		}
		o.Identities = append(o.Identities, ids...)
	}
	if s := cc.String("lineage"); s != "" {
		l, err := hsm.ParseLineage(s)
		if err != nil {
			return o, err
		}
		o.Trust = &l
	}
	return o, nil
}

// trustStore is trustAmong with the snapshots of a store, listed if need be.
func trustStore(ctx context.Context, store storage.Store, o backup.OpenOptions) error {
	if o.Trust != nil {
		return nil
	}
	all, err := backup.List(ctx, store)
	if err != nil {
		return err
	}
	return trustAmong(all, o)
}

// trustAmong refuses snapshots of several lineages unless one is named: whoever may
// add objects to a store may add snapshots of a lineage of their own.
func trustAmong(all []backup.Summary, o backup.OpenOptions) error {
	if o.Trust != nil {
		return nil
	}
	lineages := map[hsm.Lineage]bool{}
	for _, s := range all {
		if s.Err == nil {
			lineages[s.Lineage] = true
		}
	}
	if len(lineages) > 1 {
		return fmt.Errorf("%w: the store holds snapshots of %d lineages; name the one to trust with --lineage (snapshots show, cluster info)", hsm.ErrLineage, len(lineages))
	}
	return nil
}
