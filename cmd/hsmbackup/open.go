package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/cloudhsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// clusterFlags name a cluster and, for automation, an appliance credential.
func clusterFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "cluster", Aliases: []string{"c"}, EnvVars: []string{"HSMBACKUP_CLUSTER"}, Usage: "`CLUSTER`: a name from the configuration file, or the path of a profile"},
		credentialFlag(),
		&cli.StringFlag{Name: "mfa", EnvVars: []string{"HSMBACKUP_MFA"}, Usage: "`FILE` with the private key of a user who has one for logins, PEM; -: print the challenge, and read the answer from standard input"},
		&cli.StringFlag{Name: "sdk-config", EnvVars: []string{"HSMBACKUP_SDK_CONFIG"}, Usage: "the durability policy of this CloudHSM configuration `FILE` applies: cloudhsm_client.cfg (Client SDK 3) or cloudhsm-*.cfg (Client SDK 5)"},
		&cli.StringFlag{Name: "component", Usage: "the same, of the file of pkcs11, dyn, jce, cli, ksp or openssl-provider in its usual place"},
	}
}

// envCompat set to "route-any" routes uses of keys to any HSM, as CloudHSM does,
// also to one that has not got the key yet: to test how applications take that.
const envCompat = "HSMBACKUP_COMPAT"

func (p *program) options(pr *profile.Profile) ([]cluster.Option, error) {
	options, err := p.sdk.options(pr)
	options = append(options, cluster.WithLog(p.log))
	approvals, approvalErr := readApprovals(p.approvals)
	options, err = append(options, cluster.WithApprovals(approvals...)), errors.Join(err, approvalErr)
	switch v := os.Getenv(envCompat); v {
	case "":
	case "route-any":
		options = append(options, cluster.WithRouting(cluster.RouteAny))
	default:
		err = errors.Join(err, usagef("%s is %q: want route-any", envCompat, v))
	}
	return options, err
}

// sdkFile names a configuration file of CloudHSM, by path or by component.
type sdkFile struct{ path, component string }

// options are those that the file asks for.
func (f sdkFile) options(pr *profile.Profile) ([]cluster.Option, error) {
	path := f.path
	if f.component != "" {
		if path != "" {
			return nil, usagef("--sdk-config and --component both name a file")
		}
		c, err := cloudhsm.ParseComponent(f.component)
		if err != nil {
			return nil, usagef("%v", err)
		}
		path = c.Path(cloudhsm.Here)
	}
	if path == "" {
		return nil, nil
	}
	policy, err := cloudhsm.LoadPolicy(path, pr.ID.String())
	if err != nil {
		return nil, err
	}
	return []cluster.Option{cluster.WithPolicy(policy)}, nil
}

func credentialFlag() cli.Flag {
	return &cli.StringFlag{Name: "credential", Usage: "appliance certificate `FILE`, instead of a login"}
}

// who says what a verb logs in with.
type who struct {
	side side
	file string // --credential
	// login was read already.
	login *login
	// A verb of automation takes the profile's appliance certificate before a
	// login (applianceFirst), or where there is no login (applianceToo).
	appliance applianceUse
}

type applianceUse uint8

const (
	applianceNever applianceUse = iota
	applianceToo
	applianceFirst
)

// open connects to the cluster called name.
func (p *program) open(ctx context.Context, name string, w who) (*cluster.Cluster, error) {
	if name == "" {
		return nil, usagef("no cluster: name it with --cluster or HSMBACKUP_CLUSTER")
	}
	pr, err := profile.Find(name)
	if err != nil {
		return nil, err
	}
	cred, err := p.credential(pr, w)
	if err != nil {
		return nil, err
	}
	options, err := p.options(pr)
	if err != nil {
		return nil, err
	}
	c, err := cluster.Open(ctx, pr, cred, options...)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	return c, nil
}

// credential takes --credential, else a login or the profile's appliance
// certificate, in the order that suits the verb.
func (p *program) credential(pr *profile.Profile, w who) (cluster.Credential, error) {
	appliance := cluster.Credential{Identity: pr.AppliancePath()}
	has := w.appliance != applianceNever && readable(appliance.Identity)
	switch {
	case w.file != "":
		return cluster.Credential{Identity: w.file}, nil
	case has && w.appliance == applianceFirst:
		return appliance, nil
	}
	l, ok, err := p.loginOf(w)
	switch {
	case err != nil:
		return cluster.Credential{}, err
	case ok:
		factor, err := p.secondFactor(pr, l.name)
		return cluster.Credential{Role: l.role, Name: l.name, Password: l.password, SecondFactor: factor}, err
	case has:
		return appliance, nil
	}
	return cluster.Credential{}, usagef("no login: set HSMBACKUP_PIN (NAME:PASSWORD) and, if you like, HSMBACKUP_ROLE, or give --credential FILE")
}

func (p *program) loginOf(w who) (login, bool, error) {
	if w.login != nil {
		return *w.login, true, nil
	}
	return p.readLogin(w.side)
}

func readable(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// withCluster opens the cluster of --cluster, runs f, and closes it.
func (p *program) withCluster(cc *cli.Context, f func(ctx context.Context, c *cluster.Cluster) error) error {
	return p.withNamed(cc, cc.String("cluster"), who{file: cc.String("credential")}, f)
}

func (p *program) withNamed(cc *cli.Context, name string, w who, f func(ctx context.Context, c *cluster.Cluster) error) (err error) {
	c, err := p.open(cc.Context, name, w)
	if err != nil {
		return err
	}
	err = f(cc.Context, c)
	if closeErr := c.Close(); err == nil {
		err = closeErr
	}
	return err
}
