package pkcs11

import (
	"fmt"
	"log/slog"
)

// Peer is the process behind an application.
type Peer struct {
	PID, UID, GID int
	Program       string
}

// LogValue makes a group of it.
func (p Peer) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("pid", p.PID), slog.Int("uid", p.UID), slog.String("program", p.Program))
}

// OnlyUser admits peers of one user, and root.
func OnlyUser(uid int) func(Peer) error {
	return func(p Peer) error {
		if p.UID != uid && p.UID != 0 {
			return fmt.Errorf("user %d may not connect; the socket is for user %d", p.UID, uid)
		}
		return nil
	}
}
