package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

func (p *program) restoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "make a clone: a new cluster from a snapshot; or bring keys back into a running one", Action: p.restore,
		Description: "Examples:\n  hsmbackup restore --from s3://backups/payments?region=eu-west-1 --identity custodian.txt --name payments --region west --hsms 3 --dir ./west\n  hsmbackup restore --from s3://backups/payments?region=eu-west-1 --identity recipient.txt --into ./east --filter attr.label=lost --plan\n\nWith --into, keys that were destroyed in the cluster stay destroyed unless --revive names them, and keys whose owner does not exist there are blocked, by name, unless --users takes the owner along.",
		Flags: append(append(append(identityFlags(), filterFlags()...),
			&cli.StringFlag{Name: "into", Usage: "bring keys back into this running `CLUSTER` instead; with --filter, --key or --label, those alone"},
			&cli.BoolFlag{Name: "users", Usage: "with --into, take along users that the keys need and the cluster lacks"},
			&cli.BoolFlag{Name: "revive", Usage: "with --into and --key, bring back keys that were destroyed in the cluster, as an admin or their owner"},
			credentialFlag(),
			&cli.StringFlag{Name: "from", Required: true, Usage: "store `LOCATION`"},
			&cli.StringFlag{Name: "snapshot", Usage: "snapshot `ID` (default the newest)"},
			&cli.TimestampFlag{Name: "at", Layout: time.RFC3339, Usage: "the newest snapshot begun at or before this `TIME`"},
			&cli.StringFlag{Name: "name", Usage: "name of the clone (default the source's)"},
			&cli.BoolFlag{Name: "plan", Usage: "show what would be restored and do nothing"}),
			optional(layoutFlags())...),
	}
}

// optional lifts the requirement of flags, for verbs that may do without.
func optional(flags []cli.Flag) []cli.Flag {
	for _, f := range flags {
		if s, ok := f.(*cli.StringFlag); ok {
			s.Required = false
		}
	}
	return flags
}

// choose picks the snapshot that --snapshot or --at names, "" for the newest, and
// returns all there are. To read every manifest takes its time where there are many,
// so it is done once, and not at all where snapshot and lineage are named.
func choose(cc *cli.Context, store storage.Store, o backup.OpenOptions) (id string, all []backup.Summary, err error) {
	id = cc.String("snapshot")
	at := cc.Timestamp("at")
	if at != nil && cc.IsSet("snapshot") {
		return "", nil, usagef("--snapshot and --at name a snapshot each; give one")
	}
	if id != "" && o.Trust != nil {
		return id, nil, nil
	}
	if all, err = backup.List(cc.Context, store); err == nil && at != nil {
		id, err = backup.FindAt(all, *at)
	}
	if err == nil {
		err = trustAmong(all, o)
	}
	return id, all, err
}

func (p *program) restore(cc *cli.Context) error {
	if err := checkRestoreFlags(cc); err != nil {
		return err
	}
	store, err := open.Open(cc.Context, cc.String("from"))
	if err != nil {
		return err
	}
	bar := p.progress("restore")
	defer bar.done()
	o, err := p.openOptions(cc, p.progress("read"))
	if err != nil {
		return err
	}
	o.Progress = nil // the copy into the HSMs tells more
	id, all, err := choose(cc, store, o)
	if err != nil {
		return err
	}
	s, err := backup.Open(cc.Context, store, id, o)
	if err != nil {
		return opened(err, exitFailed)
	}
	if cc.IsSet("into") {
		return p.restoreInto(cc, s, bar)
	}
	notes := missingNotes(s.Summary().Missing)
	if !cc.IsSet("snapshot") {
		notes = append(notes, otherClusters(all, s.Summary())...)
	}
	if cc.Bool("plan") {
		return p.restorePlan(s.Summary(), notes)
	}
	if cc.String("region") == "" || cc.String("dir") == "" {
		return usagef("restore needs --region and --dir")
	}
	if len(o.Identities) == 0 {
		return usagef("no identity: give --identity FILE for as many custodians as the threshold asks for")
	}
	name := cc.String("name")
	if name == "" {
		name = s.Summary().ClusterName
	}
	spec := p.spec(cc, name)
	spec.MinCopies = 1 // the policy comes with the snapshot
	r, err := clone.Restore(cc.Context, s, spec, bar.update)
	if err != nil {
		return opened(err, exitFailed)
	}
	bar.done()
	p.warn(cluster.Policy{}, r.Profile) // of its placement; the policy comes with the snapshot
	return p.restored(r, o.Trust != nil, notes)
}

// checkRestoreFlags refuses flags of a new cluster with --into, and the reverse.
func checkRestoreFlags(cc *cli.Context) error {
	names := []string{"filter", "key", "label", "users", "revive", "credential"}
	rule := "--%s goes with --into"
	if cc.IsSet("into") {
		names = []string{"name", "region", "hsms", "dir", "listen", "zone", "seal"}
		rule = "--%s is for a new cluster and does not go with --into"
	}
	for _, name := range names {
		if cc.IsSet(name) {
			return usagef(rule, name)
		}
	}
	return nil
}

// restoreInto brings keys back into a running cluster, or shows the plan.
func (p *program) restoreInto(cc *cli.Context, s *backup.Snapshot, bar *progress) (err error) {
	filter, err := filterOf(cc, nil)
	if err != nil {
		return err
	}
	live, err := p.open(cc.Context, cc.String("into"), who{appliance: applianceToo, file: cc.String("credential")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, live.Close()) }()
	plan, err := clone.PlanInto(cc.Context, s, live, clone.IntoOptions{Filter: filter, Users: cc.Bool("users"), Revive: cc.Bool("revive"), Progress: bar.update})
	if err != nil {
		return err
	}
	if !cc.Bool("plan") {
		if err := plan.Apply(cc.Context); err != nil {
			return err
		}
	}
	bar.done()
	r := plan.Result
	if err := p.result(r, func(w io.Writer) { printInto(w, r) }); err != nil {
		return err
	}
	if !r.Plan && (len(r.Conflicts)+len(r.Blocked)+len(r.Missing) > 0 || r.Selected() == 0 && cc.IsSet("filter")) {
		return errPrinted
	}
	return nil
}

func printInto(w io.Writer, r clone.IntoResult) {
	rows := [][]string{}
	for _, d := range r.Details {
		rows = append(rows, []string{d.Ref.String(), d.Class, d.Label})
	}
	if len(rows) > 0 {
		table(w, []string{"REFERENCE", "DIFFERENCE", "LABEL"}, rows)
	}
	fmt.Fprintf(w, "snapshot %s: %d added, %d changed, %d unchanged, %d destroyed in the cluster, %d to be revived, %d users, %d conflicts, %d blocked\n",
		r.Snapshot, r.Added, r.Changed, r.Unchanged, r.Destroyed, r.Revived, r.Users, len(r.Conflicts), len(r.Blocked))
	for _, b := range r.Blocked {
		fmt.Fprintf(w, "blocked %s: %s\n", b.Ref, b.Reason)
	}
	for _, c := range r.Conflicts {
		fmt.Fprintf(w, "conflict %s: the cluster has another key under this reference; look at it with key show\n", c)
	}
	if r.Selected() == 0 {
		fmt.Fprintln(w, "no live key of the snapshot is selected")
	}
	for _, ref := range r.Missing {
		fmt.Fprintf(w, "missing %s: the snapshot holds no live key of this reference, or none that the filter selects\n", ref)
	}
	if r.Plan {
		fmt.Fprintln(w, "nothing was done (plan)")
		return
	}
	fmt.Fprintf(w, "%d applied\n", r.Applied)
}

func (p *program) restorePlan(s backup.Summary, notes []string) error {
	doc := summaryView(s)
	doc["plan"], doc["notes"] = true, notNil(notes)
	return p.result(doc, func(w io.Writer) {
		fmt.Fprintf(w, "snapshot %s of %s in %s, begun %s: would restore %d keys and %d objects in all, %s, to root %s\nnothing was done\n",
			s.ID, s.ClusterName, s.Region, s.Started.Format(time.RFC3339), s.Keys, s.Objects, size(int64(s.Bytes)), hex.EncodeToString(s.Root.Sum[:]))
		printNotes(w, notes)
	})
}

func printNotes(w io.Writer, notes []string) {
	for _, n := range notes {
		fmt.Fprintln(w, "note:", n)
	}
}

// missingNotes says which HSMs the snapshot was taken without.
func missingNotes(missing []hsm.HSMID) []string {
	if len(missing) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("the snapshot was taken without %s: a key that was on no other HSM is not in it", joinIDs(missing))}
}

// otherClusters notes the newest snapshot of each other cluster in the store: where no
// snapshot is named, the newest of all is restored, which may be another cluster's than
// the one that was meant.
func otherClusters(all []backup.Summary, chosen backup.Summary) (notes []string) {
	seen := map[hsm.ClusterID]bool{chosen.Cluster: true}
	for _, s := range slices.Backward(all) {
		if s.Err != nil || s.Lineage != chosen.Lineage || seen[s.Cluster] {
			continue
		}
		seen[s.Cluster] = true
		notes = append(notes, fmt.Sprintf("snapshot %s is of %s in %s; the store holds snapshots of %s in %s too, the newest of them %s: --snapshot names the one to restore",
			chosen.ID, chosen.Cluster, chosen.Region, s.Cluster, s.Region, s.ID))
	}
	return notes
}

// restored shows the clone. Without --lineage, the lineage is what the store
// says it is, and worth a look.
func (p *program) restored(r *clone.Restored, named bool, notes []string) error {
	doc := map[string]any{
		"snapshot": r.Snapshot, "name": r.Profile.Name, "id": r.Profile.ID, "lineage": r.Profile.Lineage, "region": r.Profile.Region, "profile": r.Profile.Path(),
		"hsms": len(r.Profile.HSMs), "objects": r.Objects, "bytes": r.Bytes, "root": r.Root, "root_equal": r.RootEqual, "resumed_objects": r.Resumed, "missing_hsms": notNil(r.Missing), "notes": notNil(notes), "seconds": r.Seconds,
	}
	whose := r.Profile.Lineage.String()
	if !named {
		whose += ", as the store names it; --lineage makes sure of it"
	}
	return p.result(doc, func(w io.Writer) {
		if r.Resumed > 0 {
			fmt.Fprintf(w, "%d objects were there from a restore that was interrupted\n", r.Resumed)
		}
		fmt.Fprintf(w, "restored snapshot %s as cluster %s %s in %s: %d objects, %s, %.2f s\n%s\nroot %s\nstart it with: hsmbackup cluster start %s\n",
			r.Snapshot, r.Profile.Name, r.Profile.ID, r.Profile.Region, r.Objects, size(r.Bytes), r.Seconds, whose, r.Root, r.Profile.Folder())
		printNotes(w, notes)
	})
}
