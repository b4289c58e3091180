package pkcs11

import (
	"fmt"
	"log/slog"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
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

// application is what HSMs are told of the peer, for their audit logs.
func (p Peer) application() hsm.Application {
	return hsm.Application{PID: int64(p.PID), UID: int64(p.UID), Program: p.Program}
}

// OnlyUsers admits peers of these users, and root.
func OnlyUsers(uids ...int) func(Peer) error {
	return func(p Peer) error {
		if p.UID != 0 && !slices.Contains(uids, p.UID) {
			return fmt.Errorf("user %d may not connect; name it with --allow", p.UID)
		}
		return nil
	}
}
