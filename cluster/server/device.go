package server

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
)

// device is the HSM in a folder, without a network: the software HSM, its audit
// log, and a session with the rights of a member.
type device struct {
	soft  *soft.HSM
	audit *audit.Log
	self  hsm.Session
	id    hsm.HSMID
	log   *slog.Logger
}

// deviceOptions are what a process adds to the folder.
type deviceOptions struct {
	create       bool      // make object store and audit log; otherwise they must be there
	untidied     bool      // soft.Options.Untidied
	fs           soft.FS   // where the object store is; nil: in the folder
	audit        OpenAudit // nil: a file in the folder
	loaded       string    // where an interrupted load is gone on with (soft.Options.LoadDir)
	version      string
	sealEnvelope SealEnvelope
	changed      func() // members, invitations or revocations have changed
	iterations   int
	now          func() time.Time
	log          *slog.Logger
}

// OpenAudit opens what the audit log is written to, for reading and writing from its
// beginning.
type OpenAudit func(path string) (audit.File, error)

func (o deviceOptions) openAudit(path string) (*audit.Log, error) {
	if o.audit == nil {
		return audit.Open(path, o.now)
	}
	f, err := o.audit(path)
	if err != nil {
		return nil, err
	}
	return audit.OpenFile(f, o.now)
}

// openDevice opens the HSM of folder. Only a cluster in the making may make the
// object store: an HSM whose store is gone does not start empty.
func openDevice(ctx context.Context, folder string, c *Config, keys *secrets, o deviceOptions) (_ *device, err error) {
	d := &device{id: c.ID, log: o.log}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.audit, err = o.openAudit(filepath.Join(folder, AuditFile)); err != nil {
		return nil, err
	}
	dir := filepath.Join(folder, storeDir)
	if o.fs != nil {
		dir = storeDir
	}
	if d.soft, err = soft.Open(soft.Options{
		Existing: !o.create, Dir: dir, FS: o.fs, ID: c.ID, Cluster: c.Cluster, ClusterName: c.ClusterName, Region: c.Region, Zone: c.Zone,
		Version: o.version, Keyring: keys.keyring, CA: keys.ca, Seal: o.sealEnvelope, Now: o.now, Audit: d.recordCall, Iterations: o.iterations, ClusterChanged: o.changed, LoadDir: o.loaded, Untidied: o.untidied,
	}); err != nil {
		return nil, err
	}
	d.self, err = d.soft.Module(d.principal()).Session(ctx)
	return d, err
}

// principal is the HSM itself, as a member.
func (d *device) principal() hsm.Principal {
	return hsm.Principal{Role: hsm.RoleHSM, Name: d.id.String()}
}

// record writes one event of the HSM's own to the audit log.
func (d *device) record(event string, who hsm.Principal, ref hsm.KeyRef, detail string, outcome error) {
	d.recordCall(context.Background(), event, who, ref, detail, outcome)
}

// recordCall writes one event to the audit log, and for which application its
// caller says it was.
func (d *device) recordCall(ctx context.Context, event string, who hsm.Principal, ref hsm.KeyRef, detail string, outcome error) {
	e := audit.Entry{Event: event, Role: string(who.Role), Name: who.Name, Detail: detail}
	if a, ok := hsm.ApplicationOf(ctx); ok {
		e.Application = a.String()
	}
	if ref != 0 {
		e.Key = ref.String()
	}
	if outcome != nil {
		e.Result = outcome.Error()
	}
	write := d.audit.Append
	if event == "create" || event == "commit" || event == string(hsm.ChangeDestroy) { // which come in crowds
		write = d.audit.Note
	}
	d.recorded(event, write(e))
}

// settle has the audit log written as far as it is noted. It is called before
// anybody is told of what happened.
func (d *device) settle() { d.recorded("", d.audit.Flush()) }

func (d *device) recorded(event string, err error) {
	if err != nil {
		d.log.Error("the audit log cannot be written; keys, users, settings and members are not changed until it can", "hsm", d.id.String(), "event", event, "error", err)
	}
}

// close releases the folder. It may be called again, and on a device that was
// opened half way.
func (d *device) close() error {
	var errs []error
	if d.self != nil {
		errs = append(errs, d.self.Close())
	}
	if d.soft != nil {
		errs = append(errs, d.soft.Close())
	}
	if d.audit != nil {
		errs = append(errs, d.audit.Close())
	}
	return errors.Join(errs...)
}
