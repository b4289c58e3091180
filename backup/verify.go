package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/storage"
)

// Level is how thoroughly Verify looks.
type Level string

// The levels. The third of the design, use, is a drill: it takes HSMs.
const (
	// LevelHashes needs no key: signature, presence and hash of every object,
	// and the root recomputed from the indexes.
	LevelHashes Level = "hashes"
	// LevelRoot decrypts every pack as well, compares every object with the
	// index, and recomputes the root from the objects. If the identities also
	// open the recovery envelope, every object is unmasked, which proves that it
	// is authentic.
	LevelRoot Level = "root"
	// LevelUse is what a drill adds: every key is restored and used. Verify does
	// not do it; a record of verification may say that it was done.
	LevelUse Level = "use"
)

// ParseLevel reads a level. hsm.ErrInvalid.
func ParseLevel(s string) (Level, error) {
	if l := Level(s); l == LevelHashes || l == LevelRoot {
		return l, nil
	}
	return "", fmt.Errorf("%w: level %q: want %s or %s", hsm.ErrInvalid, s, LevelHashes, LevelRoot)
}

// Problem is one thing that Verify found wrong.
type Problem struct {
	Object string `json:"object"` // its name in the store
	Err    error  `json:"-"`
}

// VerifyReport is what Verify found.
type VerifyReport struct {
	ID        string    `json:"id"`
	Level     Level     `json:"level"`
	Packs     int       `json:"packs"`
	Checked   int       `json:"packs_checked"` // fewer than Packs in a sample
	Turn      uint64    `json:"turn"`          // of the sample
	Chosen    []string  `json:"-"`             // the packs of a sample, by name
	Objects   uint64    `json:"objects"`       // compared, older states included
	Unmasked  uint64    `json:"unmasked"`
	Bytes     uint64    `json:"bytes"` // of packs
	Root      hsm.Root  `json:"-"`     // recomputed
	RootEqual bool      `json:"root_equal"`
	Envelope  string    `json:"envelope"` // "present", or "opened"
	Unsettled int       `json:"unsettled"`
	Problems  []Problem `json:"-"`

	id      format.Marked
	keyring *hsm.Keyring // that the recovery envelope held, if it was opened
}

// OK tells whether nothing is wrong.
func (r *VerifyReport) OK() bool { return len(r.Problems) == 0 && r.RootEqual }

// Err returns the problems as one error, or nil.
func (r *VerifyReport) Err() error {
	var all []error
	for _, p := range r.Problems {
		all = append(all, p.Err)
	}
	return errors.Join(all...)
}

// Verify checks a snapshot, the newest if id is "". Damage is in the report,
// every damaged object by name, and not an error: an error means that Verify
// could not look, because the manifest does not open (as with Open), the store
// fails, or no identity fits.
func Verify(ctx context.Context, store storage.Store, id string, level Level, o OpenOptions) (*VerifyReport, error) {
	return VerifySample(ctx, store, id, level, Sample{}, o)
}

// VerifySample is Verify of a share of the packs: those whose turn it is. The
// signature, the recovery envelope, all indexes and the root are checked
// whatever the share.
func VerifySample(ctx context.Context, store storage.Store, id string, level Level, sample Sample, o OpenOptions) (*VerifyReport, error) {
	if _, err := ParseLevel(string(level)); err != nil {
		return nil, err
	}
	s, err := Open(ctx, store, id, o)
	if err != nil {
		return nil, err
	}
	if level == LevelRoot && len(o.Identities) == 0 {
		return nil, fmt.Errorf("verify %s: %w: level %s decrypts the packs", s.ID(), ErrIdentity, level)
	}
	v := &verifier{Snapshot: s, report: &VerifyReport{ID: s.ID(), Level: level, Packs: len(s.manifest.Packs), Unsettled: len(s.manifest.Unsettled), id: s.id}}
	v.choose(sample)
	if err := v.run(ctx, level); err != nil {
		return nil, fmt.Errorf("verify %s: %w", s.ID(), err)
	}
	return v.report, nil
}

type verifier struct {
	*Snapshot
	report  *VerifyReport
	keyring *hsm.Keyring
	chosen  map[format.Name]bool // packs to be read

	mu   sync.Mutex
	done Progress
}

func (v *verifier) run(ctx context.Context, level Level) error {
	if err := v.envelope(ctx, level); err != nil {
		return err
	}
	layers := make([]layer, len(v.manifest.Packs))
	err := parallel(ctx, v.workers(), len(layers), func(ctx context.Context, i int) (err error) {
		layers[i], err = v.pack(ctx, v.manifest.Packs[i], level)
		return err
	})
	if err != nil {
		return err
	}
	root := reconcile.NewRootState(v.manifest.Fingerprints)
	for o := range merged(layers) {
		root.Add(reconcile.ItemOf(o))
	}
	v.report.Root = root.Root()
	v.report.RootEqual = v.report.Root == v.manifest.Root
	if !v.report.RootEqual && len(v.report.Problems) == 0 {
		path := format.ManifestPath(v.manifest.Sequence)
		v.problem(path, fmt.Errorf("%w: %s: the objects have another root than it says", ErrCorrupt, path))
	}
	return nil
}

// choose picks the packs of the sample.
func (v *verifier) choose(sample Sample) {
	v.chosen = sample.choose(v.manifest.Packs)
	v.report.Checked, v.report.Turn = len(v.chosen), sample.Turn
	if sample.Share > 0 {
		for name := range v.chosen {
			v.report.Chosen = append(v.report.Chosen, name.String())
		}
		slices.Sort(v.report.Chosen)
	}
}

// envelope checks the recovery envelope, and opens it if the identities can.
func (v *verifier) envelope(ctx context.Context, level Level) error {
	path := format.EnvelopePath(v.manifest.Envelope)
	stored, err := fetch(ctx, v.store, path, v.manifest.Envelope, format.MaxEnvelope)
	if err == nil {
		v.report.Envelope = "present"
		if _, decodeErr := format.DecodeEnvelope(stored); decodeErr != nil {
			err = fmt.Errorf("%s: %w", path, decodeErr)
		}
	}
	if err == nil && level == LevelRoot {
		if _, err = v.open(ctx, v.manifest.Envelope); err == nil {
			v.report.Envelope = "opened"
		}
		o, openErr := v.opened(ctx)
		switch {
		case openErr == nil:
			v.keyring, v.report.keyring = o.keyring, o.keyring // maybe from the envelope of another snapshot
		case !errors.Is(openErr, ErrIdentity) && !v.isDamage(openErr): // the store failed: do not quietly look less closely
			return openErr
		}
		if errors.Is(err, ErrIdentity) { // not a custodian of it, or not enough of them
			err = nil
		}
	}
	return v.found(path, err)
}

// isDamage tells whether err is about what the repository holds.
func (v *verifier) isDamage(err error) bool {
	return damaged(err) || errors.Is(err, hsm.ErrCorrupt) || errors.Is(err, hsm.ErrLineage)
}

// found takes note of damage and returns any other error.
func (v *verifier) found(path string, err error) error {
	if err != nil && v.isDamage(err) {
		v.problem(path, err)
		return nil
	}
	return err
}

func (v *verifier) problem(path string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Problems = append(v.report.Problems, Problem{Object: path, Err: err})
}

// pack checks one pack and its index, and returns the items that are good.
func (v *verifier) pack(ctx context.Context, p format.PackEntry, level Level) (layer, error) {
	l := layer{alternate: p.Alternate}
	x, err := loadIndex(ctx, v.store, v.manifest.Lineage, p)
	if err == nil {
		l.items = x.Items
	}
	if err := v.found(format.IndexPath(p.Index), err); err != nil {
		return l, err
	}
	if !v.chosen[p.Pack] {
		return l, nil
	}
	buf := packBuffers.Get().(*[]byte)
	defer packBuffers.Put(buf)
	err = fetchPack(ctx, v.store, p, buf)
	if err == nil && level == LevelRoot && l.items != nil {
		if err = v.objects(ctx, *buf, x); err != nil {
			err = fmt.Errorf("%s: %w", format.PackPath(p.Pack), err)
		}
	}
	v.count(p)
	if err != nil {
		l.items = nil
	}
	return l, v.found(format.PackPath(p.Pack), err)
}

// objects decrypts a pack and compares it with its index.
func (v *verifier) objects(ctx context.Context, stored []byte, x format.Index) error {
	items, blocks := x.Items, x.Blocks
	n, c := 0, v.objectChecker()
	err := v.eachBlock(ctx, stored, func(first int, b *format.BlockData) error {
		if len(blocks) == 0 || uint32(b.Len()) != blocks[0].Objects || b.Size() != int(blocks[0].Length) {
			return fmt.Errorf("%w: its blocks are not those of its index", ErrCorrupt)
		}
		blocks = blocks[1:]
		for i := range b.Len() {
			if err := c.check(b.Columns(i), items[first+i]); err != nil {
				return err
			}
		}
		n += b.Len()
		return nil
	})
	if err == nil && n != len(items) {
		err = fmt.Errorf("%w: it holds %d objects, its index %d", ErrCorrupt, n, len(items))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Objects += uint64(n)
	v.report.Unmasked += c.unmasked
	return err
}

// objectChecker checks objects one after the other.
type objectChecker struct {
	lineage  hsm.Lineage
	opener   *hsm.Opener // nil: without the keys a claim is all there is
	unmasked uint64
	bytes    []byte // scratch
}

func (v *verifier) objectChecker() *objectChecker {
	c := &objectChecker{lineage: v.Lineage()}
	if v.keyring != nil {
		c.opener = v.keyring.NewOpener()
	}
	return c
}

// check puts an object together and compares it with what the index says of it: the claim
// in its clear part, and with the keys the object itself, which is to compare the claim
// and more.
func (c *objectChecker) check(columns hsm.Columns, want hsm.Object) (err error) {
	if c.bytes, err = hsm.AppendJoined(c.bytes[:0], columns); err != nil {
		return fmt.Errorf("%w: object %s: %w", ErrCorrupt, want.Ref, err)
	}
	m := hsm.MaskedObject{Object: want, Lineage: c.lineage, Bytes: c.bytes}
	if c.opener == nil {
		err = checkObject(m, c.lineage)
	} else if _, err = c.opener.Glance(m); err == nil {
		c.unmasked++
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

func (v *verifier) count(p format.PackEntry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Bytes += p.Size
	if v.report.Level == LevelHashes {
		v.report.Objects += p.Objects
	}
	v.done.Objects += int(p.Objects)
	v.done.Bytes += int64(p.Size)
	v.done.TotalObjects = 0
	for _, e := range v.manifest.Packs {
		if v.chosen[e.Pack] {
			v.done.TotalObjects += int(e.Objects)
		}
	}
	if v.options.Progress != nil {
		v.options.Progress(v.done)
	}
}
