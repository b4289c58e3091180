package clone

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// DrillSnapshot drills a real snapshot: it is restored as a cluster in an
// isolated folder, whose root must be the manifest's, and every key is read back
// from there and used. With live, a running cluster of the lineage, the report
// tells what that cluster holds that the snapshot does not; that is no doubt, it
// came later. What the snapshot knows and live does not is one. The report is
// signed with the lineage's key, which the restored cluster holds.
//
// The error is for a drill that could not be carried through; a drill that was
// and found fault has a report with OK false.
func DrillSnapshot(ctx context.Context, s *backup.Snapshot, spec server.Spec, live *cluster.Cluster) (*Report, error) {
	lost := time.Now()
	r := newReport(spec.Version)
	r.describe(s, lost)
	var used Used
	var first time.Time
	restored, err := restore(ctx, s, spec, nil, func(ctx context.Context, k *hsm.Keyring, in hsm.Session) (err error) {
		used, first, err = useAll(ctx, k, in)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.Restore.Seconds = restored.Seconds
	r.Clone = RegionReport{Cluster: restored.Profile.ID.String(), Region: spec.Region, HSMs: spec.HSMs, Keys: uint64(used.Keys), Root: restored.Root}
	r.judge(s, restored, used)
	if !first.IsZero() {
		r.RTOSeconds = first.Sub(lost).Seconds()
	}
	if live != nil {
		if err := r.compareLive(ctx, s, live); err != nil {
			return nil, err
		}
	}
	r.OK = len(r.Proof.Failures) == 0
	return r, r.signBy(ctx, s)
}

// describe says what the manifest does.
func (r *Report) describe(s *backup.Snapshot, lost time.Time) {
	m := s.Summary()
	r.Lineage, r.RPOSeconds = m.Lineage, lost.Sub(m.Started).Seconds()
	r.Snapshot = SnapshotReport{ID: m.ID, Objects: int(m.Objects), BytesStored: int64(m.Bytes), Seconds: m.Created.Sub(m.Started).Seconds()}
	r.Source = RegionReport{Cluster: m.Cluster.String(), Region: m.Region, HSMs: len(m.Answered) + len(m.Missing), Keys: m.Keys, Root: hex.EncodeToString(m.Root.Sum[:])}
}

// judge notes everything that is not as it should be.
func (r *Report) judge(s *backup.Snapshot, restored *Restored, used Used) {
	r.Proof.RootsEqual, r.Proof.KeysUsed, r.Proof.KCVChecked = restored.RootEqual, used.Keys, used.Checked
	r.Proof.Failures = append(r.Proof.Failures, used.Failures...)
	m := s.Summary()
	if !restored.RootEqual {
		r.doubt("the snapshot holds %d objects in several states, so its manifest cannot tell the root it restores to; take another one when the cluster is in sync", m.Unsettled)
	}
	if uint64(used.Keys) != m.Keys {
		r.doubt("%d keys answered rightly, the manifest counts %d", used.Keys, m.Keys)
	}
}

// compareLive holds the snapshot against a running cluster.
func (r *Report) compareLive(ctx context.Context, s *backup.Snapshot, live *cluster.Cluster) error {
	c, err := compare(ctx, s, live, func(i *item) {
		if !i.known() {
			r.doubt("%s %s is %s in the snapshot, and the live cluster does not know it", i.kind, i.ref, i.state())
		}
	})
	if err != nil {
		return err
	}
	r.Synckey = SynckeyReport{Missing: c.extra, Changed: c.changed, SketchBytes: c.sketchBytes, RoundTrips: c.roundTrips}
	return nil
}

func (r *Report) signBy(ctx context.Context, s *backup.Snapshot) error {
	keyring, _, err := s.Recovery(ctx)
	if err != nil {
		return err
	}
	message, err := r.signed()
	if err != nil {
		return err
	}
	r.setSignature(keyring.Sign(hsm.PurposeReport, message))
	return nil
}
