package soft

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// A log or table of contents that ends early looks like one that a crash cut
// short, so the object store cannot tell damage in its last part from that. The
// file "floor" can: it holds how many objects the store has held, durably, and
// objects never go away (a destroyed one leaves its tombstone). After an orderly
// Close it holds the roots, too. A store that opens with less is damaged.
//
// The file is replaced atomically, always after what it counts was durable; it
// may lag behind by some hundreds of objects.
const (
	floorFile    = "floor"
	floorVersion = 1
	floorStep    = 512
)

// floorRow is the file's content: CBOR after 8 bytes of its SHA-256.
type floorRow struct {
	_       struct{} `cbor:",toarray"`
	Version uint64
	Closed  bool // roots are exact; otherwise sums are empty
	Counts  []uint64
	Sums    [][]byte
}

type floor struct {
	objects atomic.Int64 // in all scopes
	next    atomic.Int64 // when to write the file again
	mu      sync.Mutex   // held while it is written
}

const floorSum = 8

func (r floorRow) encode() ([]byte, error) {
	b, err := cborMode.Marshal(r)
	sum := sha256.Sum256(b)
	return append(sum[:floorSum:floorSum], b...), err
}

func decodeFloor(b []byte) (r floorRow, err error) {
	if len(b) < floorSum {
		return r, errors.New("too short")
	}
	if sum := sha256.Sum256(b[floorSum:]); !bytes.Equal(sum[:floorSum], b[:floorSum]) {
		return r, errors.New("wrong checksum")
	}
	if err := cbor.Unmarshal(b[floorSum:], &r); err != nil {
		return r, err
	}
	if r.Version != floorVersion || len(r.Counts) != len(scopes) || len(r.Sums) != len(scopes) {
		return r, errors.New("unknown version")
	}
	return r, nil
}

// checkExisting tells a store that is not there from a new one.
func (o *Options) checkExisting() error {
	if !o.Existing {
		return nil
	}
	_, err := o.FS.Stat(o.FS.PathJoin(o.Dir, floorFile))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: object store %s is missing or incomplete; mount its disk, or replace this HSM: a new one fills itself from its peers", hsm.ErrCorrupt, o.Dir)
	}
	if err != nil {
		return fmt.Errorf("%w: object store %s: %w", hsm.ErrUnavailable, o.Dir, err)
	}
	return nil
}

// checkFloor compares what was found in the store with the file, and marks the
// store as open.
func (h *HSM) checkFloor() error {
	b, err := readFile(h.opts.FS, h.floorPath())
	if errors.Is(err, os.ErrNotExist) {
		return h.writeFloor(false)
	}
	if err != nil {
		return h.store.wrap("read "+floorFile, err)
	}
	row, err := decodeFloor(b)
	if err != nil {
		return h.lost(fmt.Sprintf("%s: %v", floorFile, err))
	}
	for _, scope := range scopes {
		root := h.states[scope].Root()
		if root.Count < row.Counts[scope] {
			return h.lost(fmt.Sprintf("%d objects are left of at least %d", root.Count, row.Counts[scope]))
		}
		if row.Closed && (root.Count != row.Counts[scope] || !bytes.Equal(root.Sum[:], row.Sums[scope])) {
			return h.lost("the objects are not those at the last shutdown")
		}
	}
	return h.writeFloor(false)
}

func (h *HSM) lost(what string) error {
	return fmt.Errorf("%w: object store %s: %s; replace this HSM: a new one fills itself from its peers", hsm.ErrCorrupt, h.store.dir, what)
}

func (h *HSM) floorPath() string { return h.opts.FS.PathJoin(h.store.dir, floorFile) }

// raiseFloor writes the file once enough objects have come. If that fails the
// floor stays where it was, which is true as well; a disk that fails shows at
// the next commit.
func (h *HSM) raiseFloor() {
	if h.floor.objects.Load() < h.floor.next.Load() || !h.floor.mu.TryLock() {
		return
	}
	defer h.floor.mu.Unlock()
	_ = h.writeFloor(false)
}

// writeFloor replaces the file, durably.
func (h *HSM) writeFloor(closed bool) error {
	row := floorRow{Version: floorVersion, Closed: closed, Counts: make([]uint64, len(scopes)), Sums: make([][]byte, len(scopes))}
	total := uint64(0)
	for _, scope := range scopes {
		root := h.states[scope].Root()
		row.Counts[scope], total = root.Count, total+root.Count
		if closed {
			row.Sums[scope] = root.Sum[:]
		}
	}
	b, err := row.encode()
	if err != nil {
		return h.store.wrap("write "+floorFile, err)
	}
	h.floor.next.Store(int64(total + floorStep + total/16))
	return h.store.wrap("write "+floorFile, replaceFile(h.opts.FS, h.store.dir, floorFile, b))
}

func readFile(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// replaceFile writes a file beside the old one and renames it over it.
func replaceFile(fs vfs.FS, dir, name string, b []byte) error {
	path := fs.PathJoin(dir, name)
	f, err := fs.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
