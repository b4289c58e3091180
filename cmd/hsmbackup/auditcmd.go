package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
)

func (p *program) auditCommand() *cli.Command {
	return &cli.Command{Name: "audit", Usage: "the audit log of an HSM", Subcommands: []*cli.Command{
		{Name: "show", Usage: "print the entries", ArgsUsage: "DIR", Action: p.auditShow, Description: "Example: hsmbackup audit show ./east/hsm-1"},
		{Name: "verify", Usage: "check the chain of hashes", ArgsUsage: "DIR", Action: p.auditVerify, Description: "Example: hsmbackup audit verify ./east/hsm-1"},
	}}
}

// readAudit reads the log in an HSM's folder, or at a path.
func readAudit(cc *cli.Context, each func(audit.Entry) error) error {
	path := cc.Args().First()
	if path == "" {
		return usagef("which HSM's folder?")
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, server.AuditFile)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return audit.Read(f, each)
}

func (p *program) auditShow(cc *cli.Context) error {
	entries := []audit.Entry{}
	err := readAudit(cc, func(e audit.Entry) error {
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return err
	}
	return p.result(entries, func(w io.Writer) {
		rows := make([][]string, len(entries))
		for i, e := range entries {
			rows[i] = []string{fmt.Sprint(e.Sequence), e.Time.Format("2006-01-02 15:04:05"), e.Event, e.Role, e.Name, e.Key, e.Detail, e.Result, e.Application}
		}
		table(w, []string{"SEQUENCE", "TIME", "EVENT", "ROLE", "NAME", "KEY", "DETAIL", "RESULT", "APPLICATION (CLAIMED BY THE CLIENT)"}, rows)
	})
}

func (p *program) auditVerify(cc *cli.Context) error {
	var n uint64
	if err := readAudit(cc, func(e audit.Entry) error { n = e.Sequence; return nil }); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: it is empty, and every log begins with the HSM's first start", audit.ErrBroken)
	}
	return p.result(map[string]any{"ok": true, "entries": n}, func(w io.Writer) { fmt.Fprintf(w, "%d entries, the chain holds\n", n) })
}
