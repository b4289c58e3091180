package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster/cloudhsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// configureCommand is CloudHSM's configure tools: configure-pkcs11, -dyn, -jce,
// -cli, -ksp and -openssl-provider, and all of them at once.
func (p *program) configureCommand() *cli.Command {
	cmd := &cli.Command{
		Name: "configure", Usage: "edit the configuration files of CloudHSM's clients", Action: p.configureAll,
		Description: "Example: hsmbackup configure --all --disable-key-availability-check\n\n" +
			"A program called configure-pkcs11, configure-dyn, … is hsmbackup configure pkcs11, dyn, …",
		Flags: append(switches(),
			&cli.BoolFlag{Name: "all", Usage: "every component of this operating system at once"},
			&cli.StringFlag{Name: "dir", Value: cloudhsm.Folder(cloudhsm.Here), Usage: "`FOLDER` of the files, with --all"}),
	}
	for _, c := range cloudhsm.Components() {
		cmd.Subcommands = append(cmd.Subcommands, p.componentCommand(c))
	}
	cmd.Subcommands = append(cmd.Subcommands, p.clientFileCommand())
	return cmd
}

// clientFileCommand is Client SDK 3's configure.
func (p *program) clientFileCommand() *cli.Command {
	return &cli.Command{
		Name: "client", Usage: "edit " + cloudhsm.SDK3FileName + " (Client SDK 3)", Description: "Example: hsmbackup configure client -a 10.0.2.9 --create-object-minimum-nodes 2",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "a", Usage: "`ADDRESS` of an HSM"},
			&cli.IntFlag{Name: "create-object-minimum-nodes", Aliases: []string{"min-copies"}, Usage: "HSMs that must hold a new key"},
			&cli.StringFlag{Name: "file", Value: cloudhsm.SDK3Path(cloudhsm.Here), Usage: "the configuration `FILE`"},
			&cli.BoolFlag{Name: "ssl", Usage: "the client has a key and certificate of its own: --pkey and --cert"},
			&cli.StringFlag{Name: "pkey", Usage: "the client's key `FILE`, with --ssl"},
			&cli.StringFlag{Name: "cert", Usage: "the client's certificate `FILE`, with --ssl"},
			&cli.StringSliceFlag{Name: "cmu", Usage: "`ADDRESS` of an HSM for the management utility, host or host:port; several replace its list of servers"},
			&cli.BoolFlag{Name: "m", Usage: "list every HSM of --cluster-id for the management utility"},
			&cli.StringFlag{Name: "i", Hidden: true, Usage: "`ID` of the daemon whose list -m took; all have one list here"},
			&cli.StringFlag{Name: "cluster-id", Usage: "`CLUSTER`, with -m: its name, profile or id"},
			&cli.StringFlag{Name: "cmu-file", Value: cloudhsm.CMUPath(cloudhsm.Here), Usage: "the management utility's configuration `FILE`"},
		},
		Action: p.configureClient,
	}
}

// managementServers are the servers that --cmu or -m name for the management
// utility; none without these.
func managementServers(cc *cli.Context) ([]string, error) {
	addresses := cc.StringSlice("cmu")
	switch {
	case cc.Bool("m") && len(addresses) > 0:
		return nil, usagef("-m and --cmu exclude each other")
	case cc.Bool("m") != cc.IsSet("cluster-id"):
		return nil, usagef("-m takes the HSMs of a cluster: name it with --cluster-id")
	case !cc.Bool("m"):
		return addresses, nil
	}
	pr, err := findCluster(cc.String("cluster-id"), "")
	if err != nil {
		return nil, err
	}
	for _, h := range pr.HSMs {
		addresses = append(addresses, h.Address)
	}
	return addresses, nil
}

// editCMU edits the management utility's file in memory.
func editCMU(path string, addresses []string) (*configured, error) {
	f, err := cloudhsm.LoadCMU(path)
	if err == nil {
		err = f.ApplyCMU(addresses)
	}
	if err != nil {
		return nil, fmt.Errorf("configure client: %w", err)
	}
	return &configured{Component: "cmu", File: path, file: f}, nil
}

// clientOnly tells whether the switches say anything of the client's own file.
func clientOnly(cc *cli.Context) bool {
	return cc.IsSet("a") || cc.IsSet("create-object-minimum-nodes") || cc.IsSet("ssl")
}

func (p *program) configureClient(cc *cli.Context) error {
	n := cc.Int("create-object-minimum-nodes")
	if cc.IsSet("create-object-minimum-nodes") && n < 1 {
		return usagef("--create-object-minimum-nodes %d: want 1 to %d", n, cloudhsm.MaxHSMs)
	}
	if ssl := cc.String("pkey") != "" && cc.String("cert") != ""; ssl != cc.Bool("ssl") {
		return usagef("--ssl, --pkey and --cert go together")
	}
	servers, err := managementServers(cc)
	if err != nil {
		return err
	}
	var files []*configured
	if len(servers) > 0 {
		one, err := editCMU(cc.String("cmu-file"), servers)
		if err != nil {
			return err
		}
		files = append(files, one)
	}
	if len(servers) == 0 || clientOnly(cc) {
		one, err := editClient(cc, n)
		if err != nil {
			return err
		}
		files = append(files, one)
	}
	return p.saveAll(files)
}

// editClient edits Client SDK 3's file in memory.
func editClient(cc *cli.Context, minimumNodes int) (*configured, error) {
	path := cc.String("file")
	f, err := cloudhsm.LoadSDK3(path)
	if err == nil {
		err = f.ApplySDK3(cc.String("a"), minimumNodes)
	}
	if err != nil {
		return nil, fmt.Errorf("configure client: %w", err)
	}
	f.ApplySSL(cc.String("pkey"), cc.String("cert"))
	return &configured{Component: "client", File: path, file: f}, nil
}

// saveAll saves files that were all edited well. If we die between two of them, the
// same command again does the rest.
func (p *program) saveAll(files []*configured) error {
	for _, one := range files {
		if err := one.save(); err != nil {
			return err
		}
	}
	if len(files) == 1 {
		return p.result(files[0], files[0].print)
	}
	return p.result(map[string]any{"files": files}, func(w io.Writer) {
		for _, one := range files {
			one.print(w)
		}
	})
}

func (p *program) componentCommand(c cloudhsm.Component) *cli.Command {
	example := "Example: hsmbackup configure " + string(c)
	edit := func(name, usage, example string, action func(*cloudhsm.File, cloudhsm.Settings) error) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, Description: example, Flags: append(switches(), fileFlag(c)),
			Action: func(cc *cli.Context) error { return p.configure(cc, c, action) },
		}
	}
	cmd := edit(string(c), "edit "+c.FileName(), example+" --disable-key-availability-check", (*cloudhsm.File).Apply)
	cmd.Subcommands = []*cli.Command{
		edit("add-cluster", "add a cluster to "+c.FileName(), example+" add-cluster --cluster-id ./east", (*cloudhsm.File).AddCluster),
		edit("remove-cluster", "remove a cluster from "+c.FileName(), example+" remove-cluster --cluster-id ./east", removeCluster),
	}
	return cmd
}

func fileFlag(c cloudhsm.Component) cli.Flag {
	return &cli.StringFlag{Name: "file", Value: c.Path(cloudhsm.Here), Usage: "the configuration `FILE`"}
}

// onOff are the switches that come in pairs, enable and disable.
var onOff = []struct{ name, usage string }{
	{"key-availability-check", "two HSMs must hold a key before it is used (on by default)"},
	{"validate-key-at-init", "check a key's permissions when an operation begins (on by default)"},
	{"certificate-storage", "store certificates on the HSMs"},
	{"sdk3-compatibility-mode", "work as Client SDK 3 did"},
	{"ecdsa-with-weak-hash-function", "allow hashes weaker than the curve"},
}

// switches are the flags of the configure tools.
func switches() []cli.Flag {
	flags := []cli.Flag{
		&cli.StringSliceFlag{Name: "a", Usage: "`ADDRESS` of an HSM, host or host:port; several replace the list"},
		&cli.StringFlag{Name: "cluster-id", Usage: "`CLUSTER`: its name, profile or id; its HSMs' addresses are taken from its profile"},
		&cli.StringFlag{Name: "region", Usage: "the region that the cluster must be in"},
		&cli.StringFlag{Name: "endpoint", Usage: "the `PROFILE` that describes the cluster, if it is not configured"},
		&cli.StringFlag{Name: "hsm-ca-cert", Usage: "the trust anchor's `FILE`"},
		&cli.StringFlag{Name: "client-cert-hsm-tls-file", Aliases: []string{"server-client-cert-file"}, Usage: "client certificate `FILE`"},
		&cli.StringFlag{Name: "client-key-hsm-tls-file", Aliases: []string{"server-client-key-file"}, Usage: "client key `FILE`"},
		&cli.StringFlag{Name: "default-retry-mode", Usage: "off or standard"},
		&cli.StringFlag{Name: "log-type", Usage: "term or file"},
		&cli.StringFlag{Name: "log-file", Usage: "`FILE` of the log"},
		&cli.StringFlag{Name: "log-level", Usage: "error, warn, info, debug or trace"},
		&cli.StringFlag{Name: "log-rotation", Usage: "never, hourly, daily or weekly"},
	}
	for _, s := range onOff {
		flags = append(flags, &cli.BoolFlag{Name: "enable-" + s.name, Usage: s.usage}, &cli.BoolFlag{Name: "disable-" + s.name, Usage: "the opposite"})
	}
	return flags
}

// settingsOf reads the switches, and looks the cluster up if there is one.
func settingsOf(cc *cli.Context) (cloudhsm.Settings, error) {
	s := cloudhsm.Settings{
		ClusterID: cc.String("cluster-id"), Addresses: cc.StringSlice("a"), CA: cc.String("hsm-ca-cert"),
		ClientCert: cc.String("client-cert-hsm-tls-file"), ClientKey: cc.String("client-key-hsm-tls-file"), RetryMode: cc.String("default-retry-mode"),
		LogType: cc.String("log-type"), LogFile: cc.String("log-file"), LogLevel: cc.String("log-level"), LogRotation: cc.String("log-rotation"),
	}
	into := []**bool{&s.AvailabilityCheck, &s.ValidateAtInit, &s.Certificates, &s.SDK3Compatible, &s.WeakECDSA}
	for i, sw := range onOff {
		on, off := cc.Bool("enable-"+sw.name), cc.Bool("disable-"+sw.name)
		if on && off {
			return s, usagef("--enable-%s and --disable-%s exclude each other", sw.name, sw.name)
		}
		if on || off {
			*into[i] = &on
		}
	}
	return s, resolveCluster(cc, &s)
}

// noteMissing says which files a configuration names that are not there, or cannot be
// read: it may be made before them, and nobody can use it without.
func (p *program) noteMissing(s cloudhsm.Settings) {
	for _, f := range []struct{ flag, path string }{
		{"--hsm-ca-cert", s.CA}, {"--client-cert-hsm-tls-file", s.ClientCert}, {"--client-key-hsm-tls-file", s.ClientKey},
	} {
		if f.path == "" {
			continue
		}
		b, err := hsm.ReadSmallFile(f.path)
		if err == nil && !bytes.Contains(b, []byte("-----BEGIN ")) {
			err = errors.New("no PEM file")
		}
		if err != nil {
			fmt.Fprintf(p.err, "note: %s %s: %v; no client connects before that is right\n", f.flag, f.path, err)
		}
	}
}

// resolveCluster does what CloudHSM asks its service for: it finds the cluster's
// profile, and in it the id and the addresses.
func resolveCluster(cc *cli.Context, s *cloudhsm.Settings) error {
	if s.ClusterID == "" {
		if cc.IsSet("region") || cc.IsSet("endpoint") {
			return usagef("--region and --endpoint say where a cluster is; name it with --cluster-id")
		}
		return nil
	}
	pr, err := findCluster(s.ClusterID, cc.String("endpoint"))
	switch {
	case errors.Is(err, profile.ErrUnknown) && (len(s.Addresses) > 0 || cc.Command.Name == "remove-cluster"):
		return nil // it need not be known here
	case err != nil:
		return err
	}
	if region := cc.String("region"); region != "" && region != pr.Region {
		return usagef("cluster %s is in region %s, not in %s", pr.ID, pr.Region, region)
	}
	s.ClusterID = pr.ID.String()
	if len(s.Addresses) == 0 && cc.Command.Name != "remove-cluster" {
		for _, h := range pr.HSMs {
			s.Addresses = append(s.Addresses, h.Address)
		}
	}
	return nil
}

// findCluster finds a cluster by name, path of its profile, or id among those
// configured.
func findCluster(name, endpoint string) (*profile.Profile, error) {
	if endpoint != "" {
		pr, err := profile.Load(endpoint)
		if err == nil && name != pr.ID.String() && name != pr.Name {
			return nil, fmt.Errorf("%w: %s describes cluster %s %s, not %q", profile.ErrUnknown, endpoint, pr.Name, pr.ID, name)
		}
		return pr, err
	}
	pr, err := profile.Find(name)
	if !errors.Is(err, profile.ErrUnknown) {
		return pr, err
	}
	path, pathErr := profile.ConfigPath()
	if pathErr != nil {
		return nil, pathErr
	}
	config, configErr := profile.LoadConfig(path)
	if configErr != nil {
		return nil, configErr
	}
	for _, n := range slices.Sorted(maps.Keys(config.Clusters)) {
		if pr, findErr := profile.Find(n); findErr == nil && pr.ID.String() == name {
			return pr, nil
		}
	}
	return nil, err
}

func removeCluster(f *cloudhsm.File, s cloudhsm.Settings) error {
	if s.ClusterID == "" {
		return usagef("which cluster? name it with --cluster-id")
	}
	f.RemoveCluster(s.ClusterID)
	return nil
}

// configured is one file as --json prints it.
type configured struct {
	Component string `json:"component"`
	File      string `json:"file"`
	Changed   bool   `json:"changed"`
	file      *cloudhsm.File
}

func (p *program) configure(cc *cli.Context, c cloudhsm.Component, edit func(*cloudhsm.File, cloudhsm.Settings) error) error {
	s, err := settingsOf(cc)
	if err != nil {
		return err
	}
	one, err := edited(c, cc.String("file"), s, edit)
	if err != nil {
		return err
	}
	if err := one.save(); err != nil {
		return err
	}
	p.noteMissing(s)
	return p.result(one, one.print)
}

// configureAll edits the files of every component: first all in memory, so that
// one that cannot be edited leaves all as they are, then each on disk.
func (p *program) configureAll(cc *cli.Context) error {
	if cc.NArg() > 0 || !cc.Bool("all") {
		return p.noCommand(cc)
	}
	s, err := settingsOf(cc)
	if err != nil {
		return err
	}
	var files []*configured
	for _, c := range cloudhsm.ComponentsOn(cloudhsm.Here) {
		one, err := edited(c, filepath.Join(cc.String("dir"), c.FileName()), s, (*cloudhsm.File).Apply)
		if err != nil {
			return err
		}
		files = append(files, one)
	}
	defer p.noteMissing(s)
	return p.saveAll(files)
}

func edited(c cloudhsm.Component, path string, s cloudhsm.Settings, edit func(*cloudhsm.File, cloudhsm.Settings) error) (*configured, error) {
	f, err := cloudhsm.Load(path)
	if err == nil {
		err = edit(f, s)
	}
	if err != nil {
		return nil, fmt.Errorf("configure %s: %w", c, err)
	}
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configure %s: %w: folder %s; create it, or name another with --file, or --dir with --all", c, fs.ErrNotExist, filepath.Dir(path))
	} else if err != nil {
		return nil, fmt.Errorf("configure %s: %w", c, err)
	}
	return &configured{Component: string(c), File: path, file: f}, nil
}

func (c *configured) save() (err error) {
	c.Changed, err = c.file.Save(c.File)
	return err
}

func (c *configured) print(w io.Writer) {
	fmt.Fprintf(w, "%s: %s\n", c.File, map[bool]string{true: "written", false: "as it was"}[c.Changed])
}

// calledAs turns the command line of a program called configure-pkcs11, … into
// that of hsmbackup configure pkcs11, and of one called configure, Client SDK 3's,
// into that of hsmbackup configure client.
func calledAs(args []string) []string {
	if len(args) == 0 {
		return args
	}
	name := ""
	if c, ok := cloudhsm.Called(args[0]); ok {
		name = string(c)
	} else if cloudhsm.CalledSDK3(args[0]) {
		name = "client"
	}
	if name == "" {
		return args
	}
	return append([]string{"hsmbackup", "configure", name}, args[1:]...)
}
