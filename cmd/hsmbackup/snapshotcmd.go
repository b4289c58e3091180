package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

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
		Description: "LOCATION is a folder or file:///…, s3://BUCKET/PREFIX?region=…&endpoint=…, or minio://HOST:PORT/BUCKET/PREFIX?tls=false.\nThe host that takes snapshots can decrypt nothing: it needs the appliance certificate, and the HSMs say to whom to encrypt.\n\nExample: hsmbackup snapshot --cluster ./east --to s3://backups/payments?region=eu-west-1 --recipient age1…",
		Flags: append(clusterFlags(),
			&cli.StringFlag{Name: "to", Required: true, Usage: "store `LOCATION`"},
			&cli.StringSliceFlag{Name: "recipient", Usage: "age `RECIPIENT` who can decrypt the packs beside the cluster's custodians"},
			&cli.BoolFlag{Name: "full", Usage: "write everything again"},
			&cli.BoolFlag{Name: "require-all", Usage: "refuse if an HSM does not answer"},
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
	tags, err := tagsOf(cc.StringSlice("tag"))
	if err != nil {
		return err
	}
	store, err := open.Open(cc.Context, cc.String("to"))
	if err != nil {
		return err
	}
	return p.withNamed(cc, cc.String("cluster"), statusLogin(cc), func(ctx context.Context, c *cluster.Cluster) error {
		recipients, err := p.recipients(cc, c)
		if err != nil {
			return err
		}
		bar := p.progress("snapshot")
		defer bar.done()
		r, err := backup.Take(ctx, clone.Origin(c), store, backup.TakeOptions{
			Recipients: recipients, Full: cc.Bool("full"), RequireAll: cc.Bool("require-all"), Tags: tags, Progress: bar.backup,
		})
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
		b, err := os.ReadFile(path)
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

// trustStore refuses a store with snapshots of several lineages unless one is
// named: whoever may add objects to a store may add snapshots of a lineage of
// their own.
func trustStore(ctx context.Context, store storage.Store, o backup.OpenOptions) error {
	if o.Trust != nil {
		return nil
	}
	all, err := backup.List(ctx, store)
	if err != nil {
		return err
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

func (p *program) snapshotsCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshots", Usage: "list, show and verify snapshots", ArgsUsage: "LOCATION [show|verify] [ID]", Action: p.snapshots,
		Description: "Verification has three levels: hashes (signature and hashes, no key needed), root (decrypt all, recompute the root; needs --identity), use (restore in memory and use every key; needs --identity).\n\nExamples:\n  hsmbackup snapshots ./store\n  hsmbackup snapshots ./store show 0000000001\n  hsmbackup snapshots ./store verify --level root --identity custodian.txt",
		Flags:       append(identityFlags(), &cli.StringFlag{Name: "level", Value: "hashes", Usage: "hashes, root or use"}),
	}
}

// snapshotsWords sorts the words of a command line in either order:
// LOCATION VERB ID, or VERB LOCATION ID.
func snapshotsWords(words []string) (location, verb, id string, err error) {
	verb = "list"
	rest := []string{}
	for i, w := range words {
		if i < 2 && verb == "list" && slices.Contains([]string{"show", "verify", "list"}, w) {
			verb = w
			continue
		}
		rest = append(rest, w)
	}
	switch len(rest) {
	case 0:
		return "", "", "", usagef("where? name the store's LOCATION")
	case 1:
		return rest[0], verb, "", nil
	case 2:
		return rest[0], verb, rest[1], nil
	}
	return "", "", "", usagef("too many words: want LOCATION [show|verify] [ID]")
}

func (p *program) snapshots(cc *cli.Context) error {
	location, verb, id, err := snapshotsWords(cc.Args().Slice())
	if err != nil {
		return err
	}
	store, err := open.Open(cc.Context, location)
	if err != nil {
		return err
	}
	switch verb {
	case "show":
		return p.showSnapshot(cc, store, id)
	case "verify":
		return p.verifySnapshot(cc, store, id)
	}
	if id != "" {
		return usagef("there is no %q of snapshots: want show or verify", id)
	}
	return p.listSnapshots(cc, store)
}

func (p *program) listSnapshots(cc *cli.Context, store storage.Store) error {
	all, err := backup.List(cc.Context, store)
	if err != nil {
		return err
	}
	rows, views, damaged := [][]string{}, []map[string]any{}, false
	for _, s := range all {
		if s.Err != nil {
			damaged = true
			views = append(views, map[string]any{"id": s.ID, "damaged": s.Err.Error()})
			rows = append(rows, []string{s.ID, "DAMAGED: " + s.Err.Error()})
			continue
		}
		views = append(views, summaryView(s))
		rows = append(rows, []string{s.ID, s.Created.Local().Format(time.DateTime), s.ClusterName, s.Region, fmt.Sprint(s.Keys), fmt.Sprint(s.Tombstones), size(int64(s.Bytes)), fmt.Sprintf("%d of %d", len(s.Answered), len(s.Answered)+len(s.Missing)), s.Parent})
	}
	err = p.result(map[string]any{"snapshots": views, "total": len(views)}, func(w io.Writer) {
		table(w, []string{"ID", "CREATED", "CLUSTER", "REGION", "KEYS", "DESTROYED", "SIZE", "HSMS", "PARENT"}, rows)
	})
	if err == nil && damaged {
		return errPrinted
	}
	return err
}

func summaryView(s backup.Summary) map[string]any {
	return map[string]any{
		"id": s.ID, "parent": s.Parent, "started": s.Started, "created": s.Created, "lineage": s.Lineage, "cluster": s.ClusterName, "cluster_id": s.Cluster,
		"region": s.Region, "root": hex.EncodeToString(s.Root.Sum[:]), "objects": s.Objects, "keys": s.Keys, "tombstones": s.Tombstones, "packs": s.Packs,
		"bytes": s.Bytes, "coverage": backup.Coverage{Answered: notNil(s.Answered), Missing: notNil(s.Missing)}, "unsettled": s.Unsettled, "tags": s.Tags, "version": s.Version,
	}
}

func (p *program) showSnapshot(cc *cli.Context, store storage.Store, id string) error {
	o, err := p.openOptions(cc, p.progress("read"))
	if err != nil {
		return err
	}
	s, err := backup.Open(cc.Context, store, id, o)
	if err != nil {
		return opened(err, exitFailed)
	}
	v := s.Summary()
	return p.result(summaryView(v), func(w io.Writer) {
		fmt.Fprintf(w, "snapshot    %s\ncluster     %s %s in %s\nlineage     %s\nbegun       %s\ncreated     %s\nparent      %s\ncontents    %d keys, %d destroyed, %d objects\nroot        %s\nstored      %d packs, %s\nanswered    %s\nmissing     %s\n",
			v.ID, v.ClusterName, v.Cluster, v.Region, v.Lineage, v.Started.Format(time.RFC3339), v.Created.Format(time.RFC3339), orNone(v.Parent),
			v.Keys, v.Tombstones, v.Objects, hex.EncodeToString(v.Root.Sum[:]), v.Packs, size(int64(v.Bytes)), joinIDs(v.Answered), joinIDs(v.Missing))
	})
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// verifyView is a verification as --json prints it.
type verifyView struct {
	OK        bool     `json:"ok"`
	ID        string   `json:"id"`
	Level     string   `json:"level"`
	Packs     int      `json:"packs"`
	Objects   uint64   `json:"objects"`
	Bytes     uint64   `json:"bytes"`
	RootEqual bool     `json:"root_equal"`
	Envelope  string   `json:"envelope"`
	KeysUsed  int      `json:"keys_used"`
	Problems  []string `json:"problems"`
}

func (p *program) verifySnapshot(cc *cli.Context, store storage.Store, id string) error {
	bar := p.progress("verify")
	defer bar.done()
	o, err := p.openOptions(cc, bar)
	if err != nil {
		return err
	}
	level, use := backup.Level(cc.String("level")), cc.String("level") == "use"
	if use {
		level = backup.LevelRoot
	}
	if level, err = backup.ParseLevel(string(level)); err != nil {
		return usagef("--level %s: want hashes, root or use", cc.String("level"))
	}
	r, err := backup.Verify(cc.Context, store, id, level, o)
	if err != nil {
		return opened(err, exitDoubt)
	}
	v := verifyView{OK: r.OK(), ID: r.ID, Level: cc.String("level"), Packs: r.Packs, Objects: r.Objects, Bytes: r.Bytes, RootEqual: r.RootEqual, Envelope: r.Envelope, Problems: []string{}}
	for _, problem := range r.Problems {
		v.Problems = append(v.Problems, fmt.Sprintf("%s: %v", problem.Object, problem.Err))
	}
	if use && v.OK {
		if err := verifyUse(cc.Context, store, o, &v); err != nil {
			return err
		}
	}
	bar.done()
	return p.verified(v)
}

// verifyUse opens every key of the snapshot in memory and uses it.
func verifyUse(ctx context.Context, store storage.Store, o backup.OpenOptions, v *verifyView) error {
	s, err := backup.Open(ctx, store, v.ID, o)
	if err != nil {
		return err
	}
	used, err := clone.UseAll(ctx, s)
	if err != nil {
		return err
	}
	v.KeysUsed, v.OK = used.Keys, len(used.Failures) == 0
	v.Problems = append(v.Problems, used.Failures...)
	return nil
}

func (p *program) verified(v verifyView) error {
	err := p.result(v, func(w io.Writer) {
		fmt.Fprintf(w, "snapshot %s, level %s: %s\n%d packs, %d objects, %s, envelope %s\n", v.ID, v.Level, map[bool]string{true: "good", false: "DAMAGED"}[v.OK], v.Packs, v.Objects, size(int64(v.Bytes)), v.Envelope)
		if v.KeysUsed > 0 {
			fmt.Fprintf(w, "%d keys opened and used\n", v.KeysUsed)
		}
		for _, problem := range v.Problems {
			fmt.Fprintln(w, problem)
		}
	})
	if err == nil && !v.OK {
		return errPrinted
	}
	return err
}
