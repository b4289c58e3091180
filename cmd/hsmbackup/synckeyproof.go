package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// synckeyProof are the flags about what is proven in the end.
func synckeyProof() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "report", Usage: "also write the result, signed by both clusters, as JSON to `FILE`"},
		&cli.StringFlag{Name: "use-check", Usage: "use `N` of the applied keys, or all, on both sides against each other: as the crypto user of HSMBACKUP_USE_PIN, else as the logins of the run"},
		&cli.StringFlag{Name: "lineage", Usage: "verify-report: trust only this `LINEAGE` (cluster info shows it)"},
	}
}

// synckeyVerb is what stands after synckey: nothing, or verify-report.
func (p *program) synckeyVerb(cc *cli.Context) error {
	switch {
	case cc.NArg() == 0:
		return p.synckey(cc)
	case cc.Args().First() == "verify-report" && cc.NArg() == 2:
		return p.verifyReport(cc, cc.Args().Get(1))
	case cc.Args().First() == "verify-report":
		return usagef("verify-report: want one FILE that --report has written")
	}
	return usagef("synckey has no verb %q; it knows resolve and verify-report", cc.Args().First())
}

// asked are the options that were set, as they were; none is a secret.
func asked(cc *cli.Context) (words []string) {
	for _, name := range cc.LocalFlagNames() {
		switch name {
		case "json", "quiet", "report", "src", "dst", "src-credential", "dst-credential", "yes":
			continue
		}
		switch v := cc.Value(name).(type) {
		case cli.StringSlice:
			words = append(words, "--"+name+" "+strings.Join(v.Value(), " "))
		case cli.Timestamp:
			words = append(words, "--"+name+" "+v.Value().Format(time.RFC3339))
		case bool:
			words = append(words, "--"+name)
		default:
			words = append(words, fmt.Sprintf("--%s %v", name, v))
		}
	}
	return words
}

func useCheckOf(cc *cli.Context) (u synckey.UseCheck, err error) {
	switch s := cc.String("use-check"); s {
	case "":
		return u, nil
	case "all":
		u.All = true
	default:
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil || n == 0 {
			return u, usagef("--use-check %s: want a number of keys, or all", s)
		}
		u.N = int(n)
	}
	return u, nil
}

// envUser names the crypto user of --use-check: an admin and an appliance use no keys.
const envUser = "HSMBACKUP_USE_PIN"

// openUsers logs the crypto user of --use-check in on both sides.
func (p *program) openUsers(cc *cli.Context, u *synckey.UseCheck) (closeAll func() error, err error) {
	nothing := func() error { return nil }
	pin := os.Getenv(envUser)
	if *u == (synckey.UseCheck{}) || pin == "" {
		return nothing, nil
	}
	name, password, err := parsePIN(pin, envUser)
	if err != nil {
		return nothing, err
	}
	as := who{login: &login{role: hsm.RoleCryptoUser, name: name, password: password}}
	var open []*cluster.Cluster
	closeAll = func() (err error) {
		for _, c := range open {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	for _, at := range []struct {
		flag, side string
		into       **cluster.Cluster
	}{{"src", "source", &u.Src}, {"dst", "destination", &u.Dst}} {
		c, err := p.open(cc.Context, cc.String(at.flag), as)
		if err != nil {
			return nothing, errors.Join(fmt.Errorf("%s, with the login of %s: %w", at.side, envUser, err), closeAll())
		}
		*at.into, open = c, append(open, c)
	}
	return closeAll, nil
}

func printUsed(w io.Writer, u *synckey.Used) {
	if u == nil {
		return
	}
	fmt.Fprintf(w, "%d keys used on both sides: %d agree, %d have no use to compare, %d failed\n", u.Keys, u.Agreed, u.Unusable, len(u.Failures))
	for _, f := range u.Failures {
		fmt.Fprintf(w, "FAILED %s: %s\n", f.Ref, f.Reason)
	}
}

// verifyReport checks a report without any key.
func (p *program) verifyReport(cc *cli.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := synckey.ReadReport(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	trust, whose := r.Lineage, " (as the report says; --lineage makes sure of it)"
	if named := cc.String("lineage"); named != "" {
		if trust, err = hsm.ParseLineage(named); err != nil {
			return err
		}
		whose = ""
	}
	if err := r.Verify(trust); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	doc := map[string]any{"genuine": true, "lineage": r.Lineage, "time": r.Time, "src": r.Src, "dst": r.Dst, "applied": r.Applied, "remaining": r.Remaining, "roots_equal": r.RootsEqual}
	return p.result(doc, func(w io.Writer) {
		equal := map[bool]string{true: "the roots were equal", false: fmt.Sprintf("%d objects differed", r.Remaining)}[r.RootsEqual]
		fmt.Fprintf(w, "genuine: signed at %s by HSMs of %s and %s\n%s%s\n%d applied; %s\n", r.Time.Format(time.RFC3339), r.Src.ID, r.Dst.ID, r.Lineage, whose, r.Applied, equal)
	})
}
