package server

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
)

// Sync runs server-side sync for an HSM of this process whose peers are reached
// through dial, until the context ends: nil. hsm.ErrDenied when the HSM learns
// that it was removed from the cluster. It is what a Server runs, without its
// folder and its network; nothing of it runs any more when it returns.
func Sync(ctx context.Context, h *soft.HSM, self hsm.HSMID, dial Dial, interval time.Duration, log *slog.Logger) (err error) {
	session, err := h.Module(hsm.Principal{Role: hsm.RoleHSM, Name: self.String()}).Session(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, session.Close()) }()
	return newSyncer(self, session, softLocal{h}, dial, interval, log).run(ctx)
}
