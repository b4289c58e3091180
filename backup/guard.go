package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// What a take does so that a prune on another host, which it knows nothing of,
// takes nothing away that it builds on (FORMAT.md §12).

// longTake is when a take looks after its own packs too: the grace period of a
// prune is a day, and should never be less than this.
const longTake = time.Hour

// parentStands sees that the parent is still a snapshot; errAgain if it was
// removed meanwhile. It is asked when all objects are durable, right before the
// manifest is written.
func (t *take) parentStands(ctx context.Context) error {
	if t.parent == nil {
		return nil
	}
	there, err := exists(ctx, t.store, format.ManifestPath(t.parent.Sequence))
	if err != nil || there {
		return err
	}
	t.note("started over: snapshot %s was removed meanwhile", format.ID(t.parent.Sequence))
	return t.startOver()
}

// startOver has the next attempt look at the whole store.
func (t *take) startOver() error {
	t.contents, t.series.known = nil, nil
	return errAgain
}

// survived sees that nothing that the manifest names was removed between the
// last look and the manifest. If something was, the snapshot is damaged; what
// follows it is a full one, which needs nothing of it.
func (t *take) survived(ctx context.Context, m *format.Manifest) error {
	stands := true
	var err error
	if t.followed { // one that was removed may have hidden a newer one from the series
		newer, err := exists(ctx, t.store, format.ManifestPath(m.Sequence+1))
		if err != nil {
			return err
		}
		if newer {
			return t.startOver()
		}
	}
	if t.parent != nil {
		if stands, err = exists(ctx, t.store, format.ManifestPath(t.parent.Sequence)); err != nil {
			return err
		}
	}
	if stands && time.Since(t.begun) < longTake {
		return nil
	}
	if err = presence(ctx, t.store, m); err == nil {
		_, err = fetch(ctx, t.store, format.EnvelopePath(m.Envelope), m.Envelope, format.MaxEnvelope)
	}
	if errors.Is(err, ErrCorrupt) {
		t.fullReason = fmt.Sprintf("snapshot %s was damaged while it was written, by a prune with too short a grace period: %v", format.ID(m.Sequence), err)
		t.note("%s", t.fullReason)
		return t.startOver()
	}
	return err
}

// extendLocks extends the locks of a snapshot that is there.
func (t *take) extendLocks(ctx context.Context, m *format.Manifest) error {
	return extendLocks(ctx, t.store, append(neededBy(m), format.ManifestPath(m.Sequence)))
}

// exists tells whether the store has an object.
func exists(ctx context.Context, store storage.Store, path string) (bool, error) {
	r, err := store.Get(ctx, path, 0, 1)
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// objectPrefixes are where the objects lie that manifests name.
var objectPrefixes = []string{format.PackPrefix, format.IndexPrefix, format.EnvelopePrefix}

// presence sees that every pack and index that a manifest names is there and has
// its size, and that the envelope is there. ErrCorrupt names the first that is not.
func presence(ctx context.Context, store storage.Store, m *format.Manifest) error {
	sizes := map[string]int64{}
	for _, prefix := range objectPrefixes {
		for info, err := range store.List(ctx, prefix) {
			if err != nil {
				return err
			}
			sizes[info.Name] = info.Size
		}
	}
	if path := format.EnvelopePath(m.Envelope); sizes[path] == 0 {
		return fmt.Errorf("%w: %s is missing or empty", ErrCorrupt, path)
	}
	for _, p := range m.Packs {
		for path, want := range map[string]uint64{format.PackPath(p.Pack): p.Size, format.IndexPath(p.Index): p.IndexSize} {
			if size, ok := sizes[path]; !ok || size != int64(want) {
				return fmt.Errorf("%w: %s is missing or has another size", ErrCorrupt, path)
			}
		}
	}
	return nil
}
