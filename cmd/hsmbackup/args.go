package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange puts the flags of the command that args names before its positional
// arguments, because the flag package stops at the first positional one and
// people do not. A word that follows a flag which takes several values, when
// the command has no room for another positional argument, is one more value:
// --attribute encrypt=true decrypt=true. Of a line that asks for help, the words are dropped.
func arrange(app *cli.App, args []string) []string {
	if len(args) < 2 {
		return args
	}
	path, cmd, rest := findCommand(app, args)
	if cmd == nil {
		return args
	}
	a := arranger{cmd: cmd, room: positionals(cmd)}
	a.read(rest)
	if a.help && len(cmd.Subcommands) == 0 { // with words beside it, cli takes the first for what help is asked about
		return append(slices.Clone(path), "--help")
	}
	return slices.Concat(path, a.flags, a.words)
}

// findCommand follows the subcommand names at the front of args, passing over
// flags of the app itself.
func findCommand(app *cli.App, args []string) (path []string, cmd *cli.Command, rest []string) {
	commands := app.Commands
	path, rest = args[:1], args[1:]
	for len(rest) > 0 {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(rest[0]) })
		if i < 0 {
			break
		}
		cmd, path, rest = commands[i], append(slices.Clone(path), rest[0]), rest[1:]
		commands = cmd.Subcommands
	}
	return path, cmd, rest
}

// positionals counts the words in ArgsUsage; "…" means any number.
func positionals(cmd *cli.Command) int {
	if strings.Contains(cmd.ArgsUsage, "…") {
		return 1 << 20
	}
	return len(strings.Fields(cmd.ArgsUsage))
}

type arranger struct {
	cmd          *cli.Command
	room         int
	flags, words []string
	last         string // the flag of several values that was read last
	help         bool   // is asked for
}

func (a *arranger) read(args []string) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			a.words = append(a.words, args...)
			return
		case strings.HasPrefix(arg, "-") && len(arg) > 1:
			args = a.flag(arg, args)
		case len(a.words) >= a.room && a.last != "":
			a.flags = append(a.flags, a.last, arg)
		default:
			a.words = append(a.words, arg)
		}
	}
}

// flag takes one flag with its value from args.
func (a *arranger) flag(arg string, args []string) []string {
	a.flags, a.last = append(a.flags, arg), ""
	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	i := slices.IndexFunc(a.cmd.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		a.help = a.help || name == "help" || name == "h"
		return args
	}
	if _, several := a.cmd.Flags[i].(*cli.StringSliceFlag); several {
		a.last = "--" + name
	}
	if _, isBool := a.cmd.Flags[i].(*cli.BoolFlag); isBool || hasValue || len(args) == 0 {
		return args
	}
	a.flags = append(a.flags, args[0])
	return args[1:]
}
