package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

func (p *program) clusterCommand() *cli.Command {
	return &cli.Command{Name: "cluster", Usage: "make, run and watch clusters", Subcommands: append(p.maskingKeyCommands(), []*cli.Command{
		p.clusterCreateCommand(), withApproval(p.clusterSetCommand()), p.coverageCommand(), p.settleCommand(),
		{
			Name: "start", Usage: "run all HSMs of a cluster on this machine, in the foreground", ArgsUsage: "DIR", Action: p.clusterStart,
			Description: "Example: hsmbackup cluster start ./east --metrics :9100\n\nEach HSM is a process of its own. Prints one line when all are ready.",
			Flags:       []cli.Flag{metricsFlag(", each next HSM at the next port")},
		},
		{
			Name: "info", Usage: "members, state, coverage, root, operations in doubt, lag", ArgsUsage: "[CLUSTER]", Action: p.clusterInfo,
			Description: "Example: hsmbackup cluster info ./east",
			Flags:       append(clusterFlags(), &cli.BoolFlag{Name: "all", Usage: "list removed HSMs too"}),
		},
		{
			Name: "wait", Usage: "wait until every key, or one, is on every HSM; with a timeout also until the cluster answers", ArgsUsage: "[CLUSTER]", Action: p.clusterWait,
			Description: "Example: hsmbackup cluster wait ./east --timeout 30s",
			Flags: append(clusterFlags(),
				&cli.StringFlag{Name: "key", Usage: "key `REFERENCE`"},
				&cli.DurationFlag{Name: "timeout", Usage: "give up after this time"}),
		},
	}...)}
}

// layoutFlags describe the HSMs of a cluster to be laid out.
func layoutFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "region", Required: true, Usage: "where the cluster stands"},
		&cli.IntFlag{Name: "hsms", Value: 3, Usage: "how many HSMs, 1 to 28"},
		&cli.StringFlag{Name: "dir", Required: true, Usage: "new or empty `FOLDER` for the cluster"},
		&cli.StringSliceFlag{Name: "listen", Usage: "`HOST:PORT` of the HSMs; port 0 picks a free one (default 127.0.0.1:0)"},
		&cli.StringSliceFlag{Name: "zone", Usage: "availability `ZONE` of each HSM in turn"},
		&cli.StringFlag{Name: "seal", Value: "file", Usage: "what protects keys at rest: file (development), passphrase or identity"},
	}
}

func (p *program) clusterCreateCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "lay out a new cluster", ArgsUsage: "NAME", Action: p.clusterCreate,
		Description: "Example: HSMBACKUP_PIN=root:correct-horse hsmbackup cluster create payments --region east --hsms 3 --dir ./east --custodian age1…\n\nThe first admin comes from HSMBACKUP_PIN (NAME:PASSWORD) or a prompt.",
		Flags: append(layoutFlags(),
			&cli.StringSliceFlag{Name: "custodian", Usage: "age `RECIPIENT` who may open the recovery envelope of snapshots"},
			&cli.IntFlag{Name: "threshold", Value: 1, Usage: "how many custodians it takes"},
			&cli.IntFlag{Name: "min-copies", Usage: "HSMs that must hold a new key (default 2, or 1 for a cluster of one)"},
			&cli.IntFlag{Name: "min-zones", Usage: "zones that these HSMs must stand in (default: any)"}),
	}
}

func (p *program) clusterCreate(cc *cli.Context) error {
	name := cc.Args().First()
	if name == "" {
		return usagef("name the cluster")
	}
	admin, ok, err := p.readLogin(anySide)
	if err != nil {
		return err
	}
	if !ok {
		return usagef("no first admin: set HSMBACKUP_PIN (NAME:PASSWORD), or run on a terminal")
	}
	spec := p.spec(cc, name)
	spec.Custodians, spec.Threshold = cc.StringSlice("custodian"), cc.Int("threshold")
	if len(spec.Custodians) == 0 {
		spec.Threshold = 0
	}
	if err := checkCustodians(spec.Custodians, spec.Threshold); err != nil {
		return err
	}
	spec.MinCopies = cc.Int("min-copies")
	if !cc.IsSet("min-copies") {
		spec.MinCopies = min(2, spec.HSMs)
	}
	spec.MinZones, spec.CheckOnUse = cc.Int("min-zones"), spec.MinCopies > 1
	spec.Admin, spec.Password = admin.name, admin.password
	pr, err := server.Create(cc.Context, spec)
	if err != nil {
		return err
	}
	p.warn(cluster.Policy{MinCopies: spec.MinCopies, MinZones: spec.MinZones}, pr)
	return p.created(pr)
}

func (p *program) spec(cc *cli.Context, name string) server.Spec {
	return server.Spec{
		Name: name, Region: cc.String("region"), Dir: cc.String("dir"), HSMs: cc.Int("hsms"), Listen: cc.StringSlice("listen"),
		Zones: cc.StringSlice("zone"), Seal: p.newSeal(cc.String("seal")), Version: version(), SealEnvelope: backup.SealEnvelope,
	}
}

// warn says where a cluster cannot keep what its policy promises.
func (p *program) warn(policy cluster.Policy, pr *profile.Profile) {
	members := make([]hsm.Member, len(pr.HSMs))
	for i, h := range pr.HSMs {
		members[i] = hsm.Member{ID: h.ID, Zone: h.Zone}
	}
	for _, text := range policy.Warnings(members) {
		p.warning(text)
	}
}

// warning tells of something that an operator should look at, on standard error: a line, or
// with --json an event, so that what stands there is all of one kind.
func (p *program) warning(text string) {
	if p.json {
		p.event("warning", "text", text)
		return
	}
	fmt.Fprintln(p.err, "warning: "+text)
}

func (p *program) created(pr *profile.Profile) error {
	type hsmView struct {
		ID      hsm.HSMID `json:"id"`
		Name    string    `json:"name"`
		Address string    `json:"address"`
		Zone    string    `json:"zone"`
		Dir     string    `json:"dir"`
	}
	views, rows := []hsmView{}, [][]string{}
	for _, h := range pr.HSMs {
		views = append(views, hsmView{h.ID, h.Name, h.Address, h.Zone, pr.Resolve(h.Dir)})
		rows = append(rows, []string{h.Name, h.ID.String(), h.Address, h.Zone, pr.Resolve(h.Dir)})
	}
	doc := map[string]any{
		"name": pr.Name, "id": pr.ID, "lineage": pr.Lineage, "region": pr.Region, "profile": pr.Path(),
		"appliance": pr.AppliancePath(), "client": pr.ClientPath(), "hsms": views,
	}
	return p.result(doc, func(w io.Writer) {
		fmt.Fprintf(w, "cluster %s %s in %s, %s\n", pr.Name, pr.ID, pr.Region, pr.Lineage)
		table(w, []string{"HSM", "ID", "ADDRESS", "ZONE", "FOLDER"}, rows)
		fmt.Fprintf(w, "start it with: hsmbackup cluster start %s\n", pr.Folder())
	})
}

func (p *program) clusterStart(cc *cli.Context) error {
	dir := cc.Args().First()
	if dir == "" {
		return usagef("which folder?")
	}
	pr, err := profile.Load(dir)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	address, err := metricsAddress(cc)
	if err != nil {
		return err
	}
	var opts []server.FleetOption
	if address != "" {
		opts = append(opts, server.WithMetrics(address))
	}
	f, err := server.StartFleet(cc.Context, exe, pr, p.err, opts...)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "ready: cluster %s in %s with %d HSMs\n", pr.Name, pr.Region, len(pr.HSMs))
	return f.Wait()
}

// target is the cluster named by the argument, or by --cluster.
func target(cc *cli.Context) string {
	if name := cc.Args().First(); name != "" {
		return name
	}
	return cc.String("cluster")
}

// statusLogin lets a verb that only looks do so with a certificate.
func statusLogin(cc *cli.Context) who {
	return who{appliance: applianceFirst, file: cc.String("credential")}
}

func (p *program) clusterWait(cc *cli.Context) error {
	var ref hsm.KeyRef
	if s := cc.String("key"); s != "" {
		var err error
		if ref, err = hsm.ParseKeyRef(s); err != nil {
			return err
		}
	}
	ctx := cc.Context
	if d := cc.Duration("timeout"); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	c, err := p.openPatiently(ctx, cc)
	if err != nil {
		return err
	}
	if err := errors.Join(c.Wait(ctx, ref), c.Close()); err != nil {
		return err
	}
	return p.result(map[string]any{"in_sync": true}, func(w io.Writer) { fmt.Fprintln(w, "every key is on every HSM") })
}

// openPatiently also waits for a first HSM to answer, if there is a timeout to
// end it: the cluster may be starting.
func (p *program) openPatiently(ctx context.Context, cc *cli.Context) (*cluster.Cluster, error) {
	for {
		c, err := p.open(ctx, target(cc), statusLogin(cc))
		if err == nil || !errors.Is(err, hsm.ErrUnavailable) || !cc.IsSet("timeout") {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}
