package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
)

func (p *program) identityCommand() *cli.Command {
	return &cli.Command{Name: "identity", Usage: "age identities of custodians", Subcommands: []*cli.Command{{
		Name: "generate", Usage: "make a post-quantum age identity, as age-keygen -pq does, and print its recipient", ArgsUsage: "FILE", Action: p.generateIdentity,
		Description: "Example: hsmbackup identity generate custodian.txt\n\nKeep the file where no HSM and no backup host can read it: with a snapshot it opens every key.",
	}}}
}

func (p *program) generateIdentity(cc *cli.Context) error {
	path := cc.Args().First()
	if path == "" {
		return usagef("which file?")
	}
	text, recipient, err := backup.NewIdentity(time.Now())
	if err != nil {
		return err
	}
	defer text.Wipe()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text.Reveal())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return p.result(map[string]any{"recipient": recipient, "path": path}, func(w io.Writer) { fmt.Fprintln(w, recipient) })
}
