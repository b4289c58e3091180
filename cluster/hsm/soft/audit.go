package soft

import (
	"context"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Bounds of what the audit log is told, in bytes. Much of it comes from callers
// who have not logged in, and must not fill or forge the log.
const (
	maxAuditEvent  = 32
	maxAuditDetail = 1024
)

// unknown is what the audit log is told in place of what cannot be true.
const unknown = "?"

type auditFunc = func(ctx context.Context, event string, who hsm.Principal, ref hsm.KeyRef, detail string, err error)

// cleanAudit returns audit with its texts bounded and printable.
func cleanAudit(audit auditFunc) auditFunc {
	return func(ctx context.Context, event string, who hsm.Principal, ref hsm.KeyRef, detail string, err error) {
		if len(event) > maxAuditEvent || !printable(event) {
			event = unknown
		}
		audit(ctx, event, cleanPrincipal(who), ref, cleanDetail(detail), err)
	}
}

// cleanPrincipal drops roles that do not exist and names that nobody can have:
// a user's is short, an HSM's or appliance's at most as long as its certificate
// may say.
func cleanPrincipal(who hsm.Principal) hsm.Principal {
	most := hsm.MaxUserName
	switch {
	case who.Role == hsm.RoleAppliance || who.Role == hsm.RoleHSM:
		most = maxMemberText
	case who.Role != hsm.RoleNone && !slices.Contains(everyone, who.Role):
		who.Role = unknown
	}
	if len(who.Name) > most || !printable(who.Name) {
		who.Name = unknown
	}
	return who
}

func cleanDetail(s string) string {
	cut := s[:min(len(s), maxAuditDetail)]
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?'
	}, cut)
}

// printable tells whether a text is UTF-8 without control, format and other
// invisible characters; of spaces only the plain one is allowed.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
