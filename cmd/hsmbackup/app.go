package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"
)

// program holds what the verbs share.
type program struct {
	streams
	log       *slog.Logger
	sdk       sdkFile  // the CloudHSM configuration whose policy applies
	approvals []string // files with approved quorum tokens
	mfa       string   // file of the key for logins, or -
}

// memoryLimit makes the garbage collector work before memory grows, for all
// verbs but hsm serve: a snapshot or a restore of any size stays under 256 MiB.
const memoryLimit = 160 << 20

// run runs one command line and returns its exit code (exitcode.go).
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	p := &program{streams: streams{in: in, out: out, err: errOut}, log: slog.New(slog.NewTextHandler(errOut, nil))}
	app := p.app()
	args = arrange(app, calledAs(args))
	p.json = hasFlag(args, "--json")
	debug.SetMemoryLimit(memoryLimit)
	err := app.RunContext(ctx, args)
	if err == nil {
		return exitDone
	}
	return p.fail(err)
}

// hasFlag looks for a flag before "--" without parsing, so that errors of
// parsing can be printed as asked for.
func hasFlag(args []string, flag string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if a == flag || a == flag+"=true" || "-"+a == flag {
			return true
		}
	}
	return false
}

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:                      "hsmbackup",
		Usage:                     "clusters of software HSMs, their backups, clones, and key synchronization between clones",
		Version:                   version(),
		EnableBashCompletion:      true,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		Reader:                    p.in,
		Writer:                    p.out,
		ErrWriter:                 p.err,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usageError,
		Action:                    p.noCommand,
		Commands: []*cli.Command{
			p.drillCommand(), p.clusterCommand(), p.hsmCommand(), p.userCommand(), p.quorumCommand(), p.keyCommand(), p.cryptoCommand(),
			p.snapshotCommand(), p.snapshotsCommand(), p.restoreCommand(), p.synckeyCommand(), p.auditCommand(), p.identityCommand(), p.credentialCommand(), p.configureCommand(), p.clientCommand(),
		},
	}
	for _, c := range app.Commands {
		p.finish(c)
	}
	return app
}

// finish gives a command and its subcommands what all have in common.
func (p *program) finish(c *cli.Command) {
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	for _, s := range c.Subcommands {
		p.finish(s)
	}
	if c.Action == nil {
		c.Action = p.noCommand
		return
	}
	c.Flags = append(c.Flags,
		&cli.BoolFlag{Name: "json", Usage: "print the result as one JSON document"},
		&cli.BoolFlag{Name: "quiet", Usage: "no progress"})
	action, required := c.Action, takeRequired(c.Flags)
	c.Action = func(cc *cli.Context) error {
		p.json, p.quiet = cc.Bool("json"), cc.Bool("quiet")
		p.sdk = sdkFile{path: cc.String("sdk-config"), component: cc.String("component")}
		p.approvals, p.mfa = cc.StringSlice("approval"), cc.String("mfa")
		for _, name := range required {
			if !cc.IsSet(name) {
				return usagef("%s needs --%s", cc.Command.HelpName, name)
			}
		}
		if room := positionals(cc.Command); cc.NArg() > room {
			return usagef("%s takes %s, got %q too many", cc.Command.HelpName, orNothing(cc.Command.ArgsUsage), cc.Args().Slice()[room:])
		}
		return action(cc)
	}
}

// takeRequired names the required flags and has them checked here: the library
// would print the whole help to standard output.
func takeRequired(flags []cli.Flag) (names []string) {
	for _, f := range flags {
		if s, ok := f.(*cli.StringFlag); ok && s.Required {
			s.Required = false
			names = append(names, s.Name)
		}
	}
	return names
}

func orNothing(s string) string {
	if s == "" {
		return "no arguments"
	}
	return s
}

func (p *program) noCommand(cc *cli.Context) error {
	if cc.NArg() > 0 {
		return usagef("there is no command %q", strings.TrimSpace(cc.Command.HelpName+" "+cc.Args().First()))
	}
	if cc.Command.Name == "hsmbackup" || cc.Command.Name == "" {
		return cli.ShowAppHelp(cc)
	}
	return cli.ShowSubcommandHelp(cc)
}

// errUsage: the command line itself is wrong.
var errUsage = errors.New("wrong usage")

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

func usageError(_ *cli.Context, err error, _ bool) error {
	return usagef("%s", strings.TrimSpace(err.Error()))
}

// version is the module's version, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "commit-" + s.Value[:12]
		}
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	return "devel"
}
