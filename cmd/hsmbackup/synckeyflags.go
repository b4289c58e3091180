package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// synckeyGuards bound what a run selects and how much it may do.
func synckeyGuards() []cli.Flag {
	at := func(name, usage string) cli.Flag {
		return &cli.TimestampFlag{Name: name, Layout: time.RFC3339, Usage: usage}
	}
	return []cli.Flag{
		at("created-since", "keys made at or after this `TIME`"),
		at("created-until", "keys made before this `TIME`"),
		at("changed-since", "keys last changed at or after this `TIME`"),
		at("changed-until", "keys last changed before this `TIME`"),
		&cli.StringFlag{Name: "max-changes", Usage: "apply nothing if one side would get more than `N` objects (a number, or 5% of its keys)"},
		&cli.StringFlag{Name: "max-destroyed", Usage: "apply nothing if more than `N` live keys and users would be destroyed at one side (a number, a percentage, or unlimited; default 10%, and always 10)"},
	}
}

// synckeyOptions reads what selects and bounds.
func synckeyOptions(cc *cli.Context) (o synckey.Options, err error) {
	o = synckey.Options{Both: cc.Bool("both"), Destroyed: cc.Bool("destroyed"), Users: cc.Bool("users")}
	if o.Filter, err = filterOf(cc, nil); err != nil {
		return o, err
	}
	if err := guards(cc, &o); err != nil {
		return o, err
	}
	o.Sign, o.Version, o.Asked = cc.String("report") != "" && !cc.Bool("watch"), version(), asked(cc)
	if o.UseCheck, err = useCheckOf(cc); err == nil && o.UseCheck != (synckey.UseCheck{}) && (cc.Bool("watch") || cc.Bool("dry-run")) {
		err = usagef("--use-check uses what a run has applied; it goes with neither --watch nor --dry-run")
	}
	return o, err
}

// guards reads synckeyGuards.
func guards(cc *cli.Context, o *synckey.Options) error {
	for name, into := range map[string]*time.Time{
		"created-since": &o.Times.CreatedSince, "created-until": &o.Times.CreatedUntil,
		"changed-since": &o.Times.ChangedSince, "changed-until": &o.Times.ChangedUntil,
	} {
		if t := cc.Timestamp(name); t != nil {
			*into = *t
		}
	}
	for name, into := range map[string]*synckey.Limit{"max-changes": &o.MaxChanges, "max-destroyed": &o.MaxDestroyed} {
		if !cc.IsSet(name) {
			continue
		}
		limit, err := synckey.ParseLimit(cc.String(name))
		if err != nil {
			return usagef("--%s: %v", name, err)
		}
		*into = limit
	}
	return nil
}

// openSide connects to --src or --dst. Its errors name the side, and where a login
// is refused, the variable that the login came from.
func (p *program) openSide(cc *cli.Context, s side) (*cluster.Cluster, error) {
	flag, name := "src", "source"
	if s == dstSide {
		flag, name = "dst", "destination"
	}
	c, err := p.open(cc.Context, cc.String(flag), who{side: s, appliance: applianceToo, file: cc.String(flag + "-credential")})
	return c, sideError(name, s, err)
}

func sideError(name string, s side, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hsm.ErrLogin) || errors.Is(err, hsm.ErrLocked):
		if pin, variable := environ(s, "PIN"); pin != "" {
			return fmt.Errorf("%s, with the login of %s: %w", name, variable, err)
		}
	}
	return fmt.Errorf("%s: %w", name, err)
}
