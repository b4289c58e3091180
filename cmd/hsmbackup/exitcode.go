package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/cloudhsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// The exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2 // the command line is wrong
	exitDoubt   = 3 // a check found a difference or a doubt
	exitRefused = 4 // refused by a rule: rights, lineage, durability, retention, non-empty target
)

// errDoubt: a check found a difference or a doubt.
var errDoubt = errors.New("the check found differences")

// errPrinted: a check's result, with its doubts, has been printed; only the exit
// code is left to give.
var errPrinted = errors.New("see the result above")

// errPrintedFailed: the same of a verb that failed in part.
var errPrintedFailed = errors.New("see the failures above")

// damage is an error of a snapshot that is damaged or forged. Its exit code is
// that of the verb: a check has done its work when it finds damage, a restore
// has failed.
type damage struct {
	error
	exit int
}

// Unwrap returns the error itself.
func (d damage) Unwrap() error { return d.error }

// opened marks an error of opening or reading a snapshot as damage if it is.
func opened(err error, exit int) error {
	if errors.Is(err, backup.ErrCorrupt) || errors.Is(err, hsm.ErrSignature) {
		return damage{err, exit}
	}
	return err
}

// verdict is how an error is reported: a stable code, the exit code, and what
// to do next.
type verdict struct {
	is   error
	code string
	exit int
	hint string
}

const hintFull = "free space on the disk, or raise the limit of the account, then run the same command again"

// verdicts are tried in order; the first that matches wins.
var verdicts = []verdict{
	{errUsage, "usage", exitUsage, "see --help"},
	{errDoubt, "doubt", exitDoubt, "the report lists what differs and why"},
	{context.Canceled, "interrupted", exitFailed, "run the same command again; it continues"},
	{cluster.ErrExpired, "expired", exitFailed, "an admin issues a new certificate with credential issue; if every one has expired, the operator of an HSM does with credential issue --dir"},
	{cluster.ErrRevoked, "revoked", exitRefused, "an admin issues a new certificate with credential issue"},
	{cluster.ErrRemoval, "removal", exitRefused, "cluster info shows which HSMs answer and how far they are; --force removes a dead HSM"},
	{cluster.ErrMember, "denied", exitRefused, "cluster info shows the HSMs, and which of them answer"},
	{server.ErrRemoved, "denied", exitRefused, "an admin makes a token with hsm invite, with which hsm join makes a new HSM in another folder; delete this one when nothing of it is needed"},
	{server.ErrTokenRefused, "token_refused", exitRefused, "an admin makes a new token with hsm invite"},
	{hsm.ErrLocked, "locked", exitRefused, "an admin unlocks the user with user unlock or user change-password"},
	{hsm.ErrMFA, "mfa", exitFailed, "name the file of the user's key with --mfa or HSMBACKUP_MFA, or run on a terminal"},
	{hsm.ErrLogin, "login", exitFailed, "check HSMBACKUP_ROLE and HSMBACKUP_PIN (NAME:PASSWORD); after more than 5 failures the user is locked"},
	{synckey.ErrLimit, "limit", exitRefused, "see what differs with --dry-run; if it is meant, raise --max-changes or --max-destroyed"},
	{synckey.ErrMoved, "moved", exitRefused, "run the same command again, without --plan: it makes another plan, to be looked at before --yes"},
	{synckey.ErrNoConflict, "no_conflict", exitRefused, "synckey --dry-run shows what differs, and which references are in conflict"},
	{synckey.ErrBlocked, "blocked", exitRefused, "create the user with user create, or bring users over with synckey --users"},
	{hsm.ErrQuorum, "quorum", exitRefused, "quorum token-sign generate makes a token; enough users sign it with quorum token-sign sign; give the file with --approval"},
	{hsm.ErrDenied, "denied", exitRefused, "log in as somebody who may: admins manage users, crypto users own and use keys"},
	{hsm.ErrLineage, "lineage", exitRefused, "only clusters and snapshots that descend from one another share keys; compare the lineages with cluster info and snapshots show"},
	{server.ErrToken, "token", exitFailed, "see why each HSM refused; start one that the token names, or make a new token with hsm invite"},
	{hsm.ErrMaskingKey, "masking_key", exitRefused, "custodians bring it over: cluster adopt-masking-keys, or synckey --identity"},
	{hsm.ErrFuture, "clock", exitRefused, "set the clocks of the HSMs right, then run the same command again"}, // before the copies that are too few for it
	{cluster.ErrAvailability, "availability", exitRefused, "wait until the key is on more HSMs (cluster wait), start the missing HSMs, or lower min-copies"},
	{cluster.ErrMinCopies, "min_copies", exitRefused, "start the missing HSMs (cluster info shows them), or ask for fewer with --min-copies"},
	{cloudhsm.ErrFile, "sdk_config", exitFailed, "correct what it names, or move the file away: hsmbackup configure writes a new one"},
	{hsm.ErrTemplate, "template", exitRefused, "key show lists the key's wrap-template, unwrap-template and derive-template; its owner sets them with key set"},
	{hsm.ErrAttribute, "attribute", exitRefused, "key show lists the key's attributes; key set changes those that may change"},
	{hsm.ErrConflict, "conflict", exitRefused, "compare both keys with key show, and decide which one stands with synckey resolve"},
	{hsm.ErrDestroyed, "destroyed", exitFailed, "a destroyed key stays destroyed; a snapshot made before may still hold it"},
	{hsm.ErrSignature, "signature", exitDoubt, "the data, the signature, the key or the mechanism is another one"},
	{profile.ErrInvalid, "profile", exitFailed, "restore the file from a copy: every HSM's folder and another client's cluster.yaml hold the same facts"},
	{hsm.ErrInvalid, "invalid", exitUsage, "see --help"},
	{errNoMember, "not_found", exitFailed, "cluster info lists the HSMs, with names and ids"},
	{hsm.ErrNotFound, "not_found", exitFailed, "key list and user list show what there is for this login"},
	{hsm.ErrExist, "exists", exitRefused, "choose another name"},
	{hsm.ErrCrypto, "crypto", exitFailed, "the data, the key or the mechanism is another one"},
	{hsm.ErrFull, "full", exitFailed, "free space on the HSM's disk, destroy session keys, or wait for creations under way"},
	{backup.ErrNoRoom, "backup", exitFailed, backup.Hint(backup.ErrNoRoom)},
	{storage.ErrFull, "storage", exitFailed, storage.Hint(storage.ErrFull)},
	{syscall.ENOSPC, "full", exitFailed, hintFull}, // of no store: of a folder that is made here
	{syscall.EDQUOT, "full", exitFailed, hintFull},
	{syscall.EFBIG, "full", exitFailed, hintFull},
	{backup.ErrCoverage, "coverage", exitRefused, "start the missing HSMs (cluster info shows them), or take the snapshot without --require-all"},
	{backup.ErrOccupied, "occupied", exitRefused, backup.Hint(backup.ErrOccupied)},
	{backup.ErrRetention, "retention", exitRefused, backup.Hint(backup.ErrRetention)},
	{cluster.ErrNoHSM, "unreachable", exitFailed, "start the cluster with cluster start DIR or hsm serve DIR, and check the addresses in cluster.yaml"},
	{storage.ErrUnreachable, "storage", exitFailed, storage.Hint(storage.ErrUnreachable)},
	{context.DeadlineExceeded, "timeout", exitFailed, "cluster info shows which HSMs answer and how far they are; give more time with --timeout, or run the same command again"},
	{hsm.ErrUnavailable, "unreachable", exitFailed, "check with cluster info which HSMs answer"},
	{hsm.ErrSession, "session", exitFailed, "the HSM was started again meanwhile; run the same command again"},
	{metrics.ErrAddress, "metrics_address", exitFailed, "name another address with --metrics or in hsm.yaml, or leave it out"},
	{server.ErrFolder, "folder", exitRefused, "name an empty folder to create in, or an existing one to serve"},
	{seal.ErrSeal, "seal", exitFailed, "give the seal the HSM was made with: HSMBACKUP_SEAL_PASSPHRASE or HSMBACKUP_SEAL_IDENTITY"},
	{audit.ErrBroken, "audit", exitDoubt, "the log was changed from that line on; compare with a copy kept elsewhere"},
	{profile.ErrUnknown, "unknown_cluster", exitFailed, "name a folder made by cluster create, or a cluster of the configuration file"},
	{hsm.ErrFile, "file", exitFailed, "check the path: it must name an ordinary file"},
	{syscall.EISDIR, "file", exitFailed, "check the path: it must name an ordinary file"},
	{syscall.ELOOP, "file", exitFailed, "check the path: it must name an ordinary file"},
	{fs.ErrNotExist, "not_found", exitFailed, "check the path"},
	{fs.ErrPermission, "permission", exitFailed, "check the permissions of the path"},
	{backup.ErrCorrupt, "backup", exitFailed, backup.Hint(backup.ErrCorrupt)},
	{hsm.ErrCorrupt, "corrupt", exitFailed, "verify names what is damaged: replace a damaged HSM (a new one fills itself from its peers), or use another snapshot"},
}

// judge finds the verdict on an error.
func judge(err error) verdict {
	if d := (damage{}); errors.As(err, &d) {
		return verdict{code: "backup", exit: d.exit, hint: backup.Hint(d.error)}
	}
	if help := cli.ExitCoder(nil); errors.As(err, &help) { // of the library: help on what there is not
		return verdict{code: "usage", exit: exitUsage, hint: "see --help"}
	}
	for _, v := range verdicts {
		if errors.Is(err, v.is) {
			return v
		}
	}
	switch hint := backup.Hint(err); hint { // it knows those of storage too
	case "":
	case storage.Hint(err):
		return verdict{code: "storage", exit: exitFailed, hint: hint}
	default:
		return verdict{code: "backup", exit: exitFailed, hint: hint}
	}
	return verdict{code: "failed", exit: exitFailed, hint: "run again with the HSMs' logs at hand"}
}

// fail reports err and returns its exit code: one line, and a hint line.
func (p *program) fail(err error) int {
	if errors.Is(err, errPrinted) {
		return exitDoubt
	}
	if errors.Is(err, errPrintedFailed) {
		return exitFailed
	}
	v := judge(err)
	message := printable(strings.Join(strings.Fields(err.Error()), " "))
	if p.json {
		doc := map[string]any{"error": map[string]string{"code": v.code, "message": message, "hint": v.hint}}
		if printErr := p.result(doc, nil); printErr != nil {
			return exitFailed
		}
		return v.exit
	}
	fmt.Fprintf(p.err, "hsmbackup: %s\nhint: %s\n", message, v.hint)
	return v.exit
}
