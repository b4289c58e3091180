package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

// snapshotsVerb is one thing that snapshots does. LOCATION and verb stand in
// either order, so that all verbs share one command and its flags.
type snapshotsVerb struct {
	name  string
	flags []string // that it takes, beside those of every verb
	needs bool     // an ID
	run   func(*cli.Context, storage.Store, string) error
}

func (p *program) snapshotsVerbs() []snapshotsVerb {
	identity := []string{"identity", "lineage"}
	return []snapshotsVerb{
		{"list", []string{"deleted"}, false, p.listSnapshots},
		{"show", identity, false, p.showSnapshot},
		{"verify", append([]string{"level", "sample", "turn", "all", "no-record"}, identity...), false, p.verifySnapshots},
		{"keep", []string{"no-keep"}, true, p.keepSnapshot},
		{"delete", nil, true, p.deleteSnapshot},
		{"undelete", nil, true, p.undeleteSnapshot},
		{"lock", []string{"until", "for", "lock-mode"}, true, p.lockSnapshot},
		{"copy", []string{"from", "to", "all", "tag", "lock-for", "lock-mode", "lineage"}, false, p.copySnapshots},
		{"forecast", append([]string{"every", "key", "grace"}, policyFlagNames()...), false, p.forecastSnapshots},
		{"prune", append([]string{"dry-run", "now", "grace"}, policyFlagNames()...), false, p.pruneSnapshots},
	}
}

func (p *program) snapshotsCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshots", Usage: "list, show and verify snapshots; say how long they stay", ArgsUsage: "LOCATION [VERB] [ID]", Action: p.snapshots,
		Description: `VERB is one of
  list      all snapshots, their state, and when they were last verified (the default)
  show      one of them
  verify    check the newest, one, or --all, at a level: hashes (signature and hashes, no key needed), root (decrypt all,
            recompute the root; needs --identity), use (restore in memory and use every key; needs --identity)
  keep      let one never expire; --no-keep lets it expire again
  delete    make one pending deletion; it is gone after seven days
  undelete  have one back that is pending deletion
  lock      keep one from being deleted --for a time or --until one (object lock); never shortens
  copy      bring one, the newest or --all --from a LOCATION --to another: what is missing there, read back
  forecast  what the rules will remove and when, and until when a --key is in some snapshot
  prune     make pending what no rule keeps, and remove what has been pending for seven days and what nothing needs

Examples:
  hsmbackup snapshots ./store
  hsmbackup snapshots ./store verify --level root --identity custodian.txt --sample 5%
  hsmbackup snapshots ./store delete 0000000001
  hsmbackup snapshots copy --from s3://payments-eu/hsm --to s3://payments-us/hsm
  hsmbackup snapshots ./store prune --keep-within 7d --keep-daily 30 --keep-monthly 12 --dry-run`,
		Flags: slices.Concat(identityFlags(), []cli.Flag{
			&cli.BoolFlag{Name: "deleted", Usage: "list: those that are gone, too"},
			&cli.StringFlag{Name: "level", Value: "hashes", Usage: "verify: hashes, root or use"},
			&cli.StringFlag{Name: "sample", Usage: "verify: read a `SHARE` of the packs, such as 5%; another one each day, all in turn"},
			&cli.Uint64Flag{Name: "turn", Usage: "verify: the `NUMBER` of the sample's turn (default: the day's)"},
			&cli.BoolFlag{Name: "all", Usage: "verify, copy: all snapshots"},
			&cli.BoolFlag{Name: "no-record", Usage: "verify: leave no record in the store"},
			&cli.BoolFlag{Name: "no-keep", Usage: "keep: let it expire again"},
			&cli.DurationFlag{Name: "for", Usage: "lock: for this long from now"},
			&cli.TimestampFlag{Name: "until", Layout: time.RFC3339, Usage: "lock: until this `TIME`"},
			&cli.StringFlag{Name: "from", Usage: "copy: the `LOCATION` to read; HSMBACKUP_SRC_ACCESS_KEY and HSMBACKUP_SRC_SECRET_KEY (and _SESSION_TOKEN) if it has keys of its own"},
			&cli.StringFlag{Name: "to", Usage: "copy: the `LOCATION` to write; HSMBACKUP_DST_ACCESS_KEY and so on"},
			&cli.StringSliceFlag{Name: "tag", Usage: "copy: `KEY=VALUE` instead of the snapshot's tags"},
			&cli.DurationFlag{Name: "lock-for", Usage: "copy: keep the copy from being deleted for this long (object lock)"},
			&cli.StringFlag{Name: "lock-mode", Value: "governance", Usage: "lock, copy: governance or compliance"},
			&cli.StringFlag{Name: "key", Usage: "forecast: until when the key of this `REFERENCE` can be restored, and when it is erased"},
			&cli.DurationFlag{Name: "every", Usage: "forecast: a snapshot is taken so often (default: as lately)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "prune: show the plan, do nothing"},
			&cli.BoolFlag{Name: "now", Usage: "prune: remove at once, without the seven days in which undelete helps; each removal begins --grace anew, so objects are freed by a run that comes --grace after the last one that removed a snapshot"},
			&cli.DurationFlag{Name: "grace", Value: backup.DefaultGrace, Usage: "prune: leave objects alone that are younger, or whose snapshot went more recently; must be longer than any snapshot or copy takes"},
		}, policyFlags()),
	}
}

// snapshotsWords sorts the words of a command line in either order:
// LOCATION VERB ID, or VERB LOCATION ID.
func snapshotsWords(words []string, verbs []string) (location, verb, id string, err error) {
	verb = "list"
	rest, found := []string{}, false
	for i, w := range words {
		if i < 2 && !found && slices.Contains(verbs, w) {
			verb, found = w, true
			continue
		}
		rest = append(rest, w)
	}
	switch {
	case len(rest) == 0:
		return "", "", "", usagef("where? name the store's LOCATION")
	case len(rest) == 1:
		return rest[0], verb, "", nil
	case len(rest) == 2 && found:
		return rest[0], verb, rest[1], nil
	case len(rest) == 2:
		return "", "", "", usagef("there is no %q of snapshots: want %s", rest[1], strings.Join(verbs, ", "))
	}
	return "", "", "", usagef("too many words: want LOCATION [VERB] [ID]")
}

func (p *program) snapshots(cc *cli.Context) error {
	var names []string
	verbs := p.snapshotsVerbs()
	for _, v := range verbs {
		names = append(names, v.name)
	}
	words := cc.Args().Slice()
	if len(words) > 0 && words[0] == "copy" { // it names its locations by flags
		words = slices.Insert(slices.Clone(words), 1, cc.String("to"))
	}
	location, verb, id, err := snapshotsWords(words, names)
	if err != nil {
		return err
	}
	v := verbs[slices.Index(names, verb)]
	if err := v.check(cc, id); err != nil {
		return err
	}
	if verb == "copy" {
		return v.run(cc, nil, id)
	}
	store, err := open.Open(cc.Context, location)
	if err != nil {
		return err
	}
	return v.run(cc, store, id)
}

// check refuses flags of other verbs, rather than pass over them.
func (v snapshotsVerb) check(cc *cli.Context, id string) error {
	for _, name := range cc.LocalFlagNames() {
		if !slices.Contains([]string{"json", "quiet", "i"}, name) && !slices.Contains(v.flags, name) {
			return usagef("snapshots %s has no --%s", v.name, name)
		}
	}
	switch {
	case v.needs && id == "":
		return usagef("snapshots %s needs the ID of a snapshot", v.name)
	case id != "" && !v.needs && !slices.Contains([]string{"show", "verify", "copy"}, v.name):
		return usagef("snapshots %s takes no ID", v.name)
	}
	return nil
}

func (p *program) listSnapshots(cc *cli.Context, store storage.Store, _ string) error {
	inv, err := backup.TakeInventory(cc.Context, store)
	if err != nil {
		return err
	}
	rows, views, damaged, gone := [][]string{}, []map[string]any{}, false, 0
	for _, s := range inv.Snapshots {
		if s.State == backup.StateDeleted {
			if gone++; !cc.Bool("deleted") {
				continue
			}
		}
		damaged = damaged || s.Err != nil
		views, rows = append(views, statusView(s)), append(rows, statusRow(s))
	}
	err = p.result(map[string]any{"snapshots": views, "total": len(views), "deleted": gone, "notes": notNil(inv.Notes)}, func(w io.Writer) {
		table(w, []string{"ID", "CREATED", "STATE", "CLUSTER", "REGION", "KEYS", "DESTROYED", "SIZE", "HSMS", "PARENT", "VERIFIED"}, rows)
		for _, n := range inv.Notes {
			fmt.Fprintln(w, "note:", n)
		}
	})
	if err == nil && damaged {
		return errPrinted
	}
	return err
}

func statusRow(s backup.Entry) []string {
	switch {
	case backup.Unreadable(s.Err):
		return []string{s.ID, "", stateOf(s), "NOT READ: " + s.Err.Error()}
	case s.Err != nil:
		return []string{s.ID, "", stateOf(s), "DAMAGED: " + s.Err.Error()}
	case s.State == backup.StateDeleted:
		return []string{s.ID, s.Deleted.Local().Format(time.DateTime), stateOf(s)}
	case s.State == backup.StateInProgress:
		return []string{s.ID, s.Copy.Begun.Local().Format(time.DateTime), stateOf(s), "from " + s.Copy.Source}
	}
	return []string{
		s.ID, s.Created.Local().Format(time.DateTime), stateOf(s), s.ClusterName, s.Region, fmt.Sprint(s.Keys), fmt.Sprint(s.Tombstones), size(int64(s.Bytes)),
		fmt.Sprintf("%d of %d", len(s.Answered), len(s.Answered)+len(s.Missing)), s.Parent, lastVerified(s),
	}
}

// stateOf is the state, and what there is to know beside it.
func stateOf(s backup.Entry) string {
	switch {
	case s.Removing:
		return string(s.State) + " (being removed)"
	case s.State == backup.StatePending:
		return fmt.Sprintf("%s (%s)", s.State, s.DeleteAt.Local().Format(time.DateTime))
	case s.Keep:
		return string(s.State) + " (keep)"
	}
	return string(s.State)
}

// lastVerified is the newest record of verification, in a word or two.
func lastVerified(s backup.Entry) string {
	if len(s.Verified) == 0 {
		return ""
	}
	return verifiedText(s.Verified[len(s.Verified)-1])
}

func verifiedText(v backup.Verified) string {
	text := fmt.Sprintf("%s %s", v.At.Local().Format(time.DateTime), v.Level)
	if v.Checked < v.Packs {
		text += fmt.Sprintf(", %d of %d packs", v.Checked, v.Packs)
	}
	if v.Signed {
		text += ", signed"
	}
	if !v.OK {
		text += ": DAMAGED"
	}
	return text
}

func summaryView(s backup.Summary) map[string]any {
	return map[string]any{
		"id": s.ID, "parent": s.Parent, "started": s.Started, "created": s.Created, "lineage": s.Lineage, "cluster": s.ClusterName, "cluster_id": s.Cluster,
		"region": s.Region, "root": hex.EncodeToString(s.Root.Sum[:]), "objects": s.Objects, "keys": s.Keys, "tombstones": s.Tombstones, "packs": s.Packs,
		"bytes": s.Bytes, "coverage": backup.Coverage{Answered: notNil(s.Answered), Missing: notNil(s.Missing)}, "unsettled": s.Unsettled, "tags": s.Tags, "version": s.Version,
	}
}

func statusView(s backup.Entry) map[string]any {
	v := map[string]any{"id": s.ID}
	switch {
	case backup.Unreadable(s.Err):
		v["unreadable"] = s.Err.Error()
	case s.Err != nil:
		v["damaged"] = s.Err.Error()
	case s.State != backup.StateDeleted && s.State != backup.StateInProgress:
		v = summaryView(s.Summary)
	}
	v["state"], v["keep"], v["verified"] = s.State, s.Keep, notNil(s.Verified)
	if s.State == backup.StatePending {
		v["delete_at"], v["removing"] = s.DeleteAt, s.Removing
	}
	if s.State == backup.StateDeleted {
		v["deleted"] = s.Deleted
	}
	if s.Copy != nil {
		v["copy"] = s.Copy
	}
	return v
}

func (p *program) showSnapshot(cc *cli.Context, store storage.Store, id string) error {
	o, err := p.openOptions(cc, p.progress("read"))
	if err != nil {
		return err
	}
	inv, err := backup.TakeInventory(cc.Context, store)
	if err != nil {
		return err
	}
	if id != "" {
		if s, err := inv.Find(id); err == nil && (s.State == backup.StateDeleted || s.State == backup.StateInProgress) {
			return p.result(statusView(*s), func(w io.Writer) { table(w, []string{"ID", "AT", "STATE", ""}, [][]string{statusRow(*s)}) })
		}
	}
	s, err := backup.Open(cc.Context, store, id, o)
	if err != nil {
		return opened(err, exitFailed)
	}
	v, err := inv.Find(s.ID())
	if err != nil {
		return err
	}
	return p.result(statusView(*v), func(w io.Writer) { showStatus(w, *v) })
}

func showStatus(w io.Writer, v backup.Entry) {
	fmt.Fprintf(w, "snapshot    %s\nstate       %s\ncluster     %s %s in %s\nlineage     %s\nbegun       %s\ncreated     %s\nparent      %s\ncontents    %d keys, %d destroyed, %d objects\nroot        %s\nstored      %d packs, %s\nanswered    %s\nmissing     %s\n",
		v.ID, stateOf(v), v.ClusterName, v.Cluster, v.Region, v.Lineage, v.Started.Format(time.RFC3339), v.Created.Format(time.RFC3339), orNone(v.Parent),
		v.Keys, v.Tombstones, v.Objects, hex.EncodeToString(v.Root.Sum[:]), v.Packs, size(int64(v.Bytes)), joinIDs(v.Answered), joinIDs(v.Missing))
	for _, k := range slices.Sorted(maps.Keys(v.Tags)) {
		fmt.Fprintf(w, "tag         %s=%s\n", k, v.Tags[k])
	}
	for _, r := range v.Last() {
		fmt.Fprintf(w, "verified    %s\n", verifiedText(r))
	}
	if v.Copy != nil {
		fmt.Fprintf(w, "copied      %s from %s\n", v.Copy.Begun.Format(time.RFC3339), v.Copy.Source)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
