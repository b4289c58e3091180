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
		{Name: "verify", Usage: "check the chain of hashes", ArgsUsage: "DIR", Action: p.auditVerify, Description: "DIR is the folder of an HSM, or of a cluster: then the log of every HSM on this machine is checked.\n\nExample: hsmbackup audit verify ./east/hsm-1"},
	}}
}

// readAudit reads the log in an HSM's folder, or at a path.
func readAudit(path string, each func(audit.Entry) error) error {
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

// auditLogs tells whose logs are meant by a path: an HSM's folder or log is one, a
// cluster's folder those of all HSMs that have theirs in it.
func auditLogs(path string) []string {
	if _, err := os.Stat(filepath.Join(path, server.AuditFile)); err == nil {
		return []string{path}
	}
	entries, _ := os.ReadDir(path) // a path that is no folder is read as a log
	var logs []string
	for _, e := range entries {
		if dir := filepath.Join(path, e.Name()); e.IsDir() {
			if _, err := os.Stat(filepath.Join(dir, server.AuditFile)); err == nil {
				logs = append(logs, dir)
			}
		}
	}
	if len(logs) == 0 {
		return []string{path}
	}
	return logs
}

func (p *program) auditShow(cc *cli.Context) error {
	entries := []audit.Entry{}
	err := readAudit(cc.Args().First(), func(e audit.Entry) error {
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
	logs := auditLogs(cc.Args().First())
	var total uint64
	for _, log := range logs {
		n, err := verifyAudit(log)
		if err != nil && len(logs) > 1 {
			err = fmt.Errorf("%s: %w", log, err)
		}
		if err != nil {
			return err
		}
		total += n
	}
	return p.result(map[string]any{"ok": true, "entries": total, "logs": len(logs)}, func(w io.Writer) {
		if len(logs) > 1 {
			fmt.Fprintf(w, "%d entries in the logs of %d HSMs, the chains hold\n", total, len(logs))
			return
		}
		fmt.Fprintf(w, "%d entries, the chain holds\n", total)
	})
}

// verifyAudit checks one log and tells how many entries it has.
func verifyAudit(path string) (uint64, error) {
	var n uint64
	if err := readAudit(path, func(e audit.Entry) error { n = e.Sequence; return nil }); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, fmt.Errorf("%w: it is empty, and every log begins with the HSM's first start", audit.ErrBroken)
	}
	return n, nil
}
