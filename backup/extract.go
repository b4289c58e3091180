package backup

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// Extract implements hsm.Source: it yields the objects in the order in which
// the packs hold them, each in its current state, and an unsettled one in every
// state. Packs are read and decrypted several at a time and checked, before
// anything of them is yielded, against the manifest that names them. Memory is
// bounded by a few packs. Whether an object is authentic, and is what the index
// says of it, the HSM tells that it is inserted into.
//
// ErrIdentity if the identities do not fit; ErrCorrupt naming the pack. What was
// yielded before an error is good.
func (s *Snapshot) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		layers, err := s.catalog.layers(ctx)
		if err != nil {
			yield(hsm.MaskedObject{}, err)
			return
		}
		wanted := slices.Sorted(refs)
		plan := s.locate(layers, slices.Compact(wanted))
		s.read(ctx, layers, plan, yield)
	}
}

// wanted names the objects to take from one pack.
type wanted struct {
	layer int
	items []int // ascending
}

// locate finds out which pack holds the current state of each reference.
func (s *Snapshot) locate(layers []layer, refs []hsm.KeyRef) []wanted {
	found := make([]bool, len(refs))
	var plan []wanted
	for i, l := range slices.Backward(layers) {
		w := wanted{layer: i}
		if l.alternate {
			w.items = s.alternates(l, refs)
		} else {
			w.items = l.current(refs, found)
		}
		if len(w.items) > 0 {
			plan = append(plan, w)
		}
	}
	slices.Reverse(plan)
	return plan
}

// current returns the items of the layer that refs ask for and that no later
// layer has, and marks them as found.
func (l layer) current(refs []hsm.KeyRef, found []bool) (items []int) {
	if len(refs) < len(l.items)/16 {
		for i, ref := range refs {
			if at, ok := l.find(ref); ok && !found[i] {
				found[i] = true
				items = append(items, at)
			}
		}
		return items
	}
	i := 0
	for at, o := range l.items {
		for i < len(refs) && refs[i] < o.Ref {
			i++
		}
		if i < len(refs) && refs[i] == o.Ref && !found[i] {
			found[i] = true
			items = append(items, at)
		}
	}
	return items
}

// alternates returns the items that the manifest lists as unsettled.
func (s *Snapshot) alternates(l layer, refs []hsm.KeyRef) (items []int) {
	for at, o := range l.items {
		listed := slices.ContainsFunc(s.manifest.Unsettled, func(v format.Version) bool { return v.Ref == o.Ref && v.Digest == o.Digest })
		if _, asked := slices.BinarySearch(refs, o.Ref); listed && asked {
			items = append(items, at)
		}
	}
	return items
}

// readMemory is what all packs being read may take together.
const readMemory = 64 << 20

func (s *Snapshot) workers() int {
	if s.options.Workers > 0 {
		return s.options.Workers
	}
	var largest uint64 = 1
	for _, p := range s.manifest.Packs {
		largest = max(largest, p.Size)
	}
	return int(min(3, max(1, readMemory/largest)))
}

// read fetches the packs of the plan and yields what is wanted of them.
func (s *Snapshot) read(ctx context.Context, layers []layer, plan []wanted, yield func(hsm.MaskedObject, error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	blocks := make(chan []hsm.MaskedObject)
	failed := make(chan error, 1)
	go func() {
		defer close(blocks)
		failed <- parallel(ctx, s.workers(), len(plan), func(ctx context.Context, i int) error {
			return s.readPack(ctx, layers[plan[i].layer].items, plan[i], blocks)
		})
	}()
	defer func() { // leave no goroutine behind
		cancel()
		for range blocks {
		}
	}()
	var done Progress
	for _, w := range plan {
		done.TotalObjects += len(w.items)
	}
	for block := range blocks {
		for _, m := range block {
			if !yield(m, nil) {
				return
			}
			done.Bytes += int64(len(m.Bytes))
		}
		if done.Objects += len(block); s.options.Progress != nil {
			s.options.Progress(done)
		}
	}
	if err := <-failed; err != nil {
		yield(hsm.MaskedObject{}, fmt.Errorf("snapshot %s: %w", s.ID(), err))
	}
}

var packBuffers = sync.Pool{New: func() any { return new([]byte) }}

// fetchPack reads a whole pack into a buffer of the pool, and checks its name.
func fetchPack(ctx context.Context, store storage.Store, p format.PackEntry, buf *[]byte) error {
	path := format.PackPath(p.Pack)
	r, err := store.Get(ctx, path, 0, -1)
	if err != nil {
		return missing(err)
	}
	defer r.Close()
	if uint64(cap(*buf)) < p.Size+1 {
		*buf = make([]byte, p.Size+1)
	}
	n, err := io.ReadFull(r, (*buf)[:p.Size+1])
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return err
	}
	*buf = (*buf)[:n]
	if uint64(n) != p.Size {
		return fmt.Errorf("%w: %s: it has not the %d bytes that the manifest says", ErrCorrupt, path, p.Size)
	}
	if format.NameOf(*buf) != p.Pack {
		return fmt.Errorf("%w: %s: its content has another hash than its name", ErrCorrupt, path)
	}
	return nil
}

// readBatch is how many objects are handed over at a time.
const readBatch = 512

// readPack sends the wanted objects of one pack, in batches.
func (s *Snapshot) readPack(ctx context.Context, items []hsm.Object, w wanted, blocks chan<- []hsm.MaskedObject) error {
	var out []hsm.MaskedObject
	send := func() error {
		if len(out) == 0 {
			return nil
		}
		select {
		case blocks <- out:
			out = nil
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := s.eachWanted(ctx, items, w, &joiner{lineage: s.Lineage()}, func(m hsm.MaskedObject) error {
		if out = append(out, m); len(out) < readBatch {
			return nil
		}
		return send()
	})
	if sendErr := send(); err == nil {
		err = sendErr
	}
	return err
}

// eachBlock decrypts a pack and calls f for each block, with the number of its
// first object, until f returns an error.
func eachBlock(stored []byte, identities []Identity, f func(first int, b *format.BlockData) error) error {
	r, err := format.NewPackReader(stored, identities)
	if err != nil {
		return err
	}
	defer r.Close()
	for first := 0; ; {
		b, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(first, b); err != nil {
			return err
		}
		first += b.Len()
	}
}

// joinSlab is how many bytes of objects are kept in one piece.
const joinSlab = 64 << 10

// joiner puts objects together, many of them in one piece of memory, or each where the
// one before was, for whoever needs it no longer.
type joiner struct {
	lineage hsm.Lineage
	passing bool // in place of the one before
	slab    []byte
}

// join puts an object together, as the index describes it.
func (j *joiner) join(c hsm.Columns, want hsm.Object) (hsm.MaskedObject, error) {
	if j.passing {
		j.slab = j.slab[:0]
	}
	if bound := hsm.JoinedBound(c); len(j.slab)+bound > cap(j.slab) {
		j.slab = make([]byte, 0, max(joinSlab, bound))
	}
	at := len(j.slab)
	all, err := hsm.AppendJoined(j.slab, c)
	if err != nil {
		return hsm.MaskedObject{}, fmt.Errorf("%w: object %s: %w", ErrCorrupt, want.Ref, err)
	}
	j.slab = all
	return hsm.MaskedObject{Object: want, Lineage: j.lineage, Bytes: all[at:len(all):len(all)]}, nil
}
