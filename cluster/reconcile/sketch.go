package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// freeCells are always worth trying: 6 KiB, which a fresh connection carries in
// its first flight (RFC 6928), so that they are sooner there than a list.
const freeCells = 128

// Reasons to list, for Stats.Abandoned.
var (
	errNoSketch = errors.New("a source keeps no sketch")
	errCheaper  = errors.New("lists cost less than a sketch")
	errEnded    = errors.New("a source ended its sketch")
	errAsked    = errors.New("lists were asked for")
)

// sketchDiff finds the difference by roots and sketches. It returns false if
// that is for the lists to do.
func sketchDiff(ctx context.Context, from, to hsm.Source, o *options, d *Difference) (found bool, err error) {
	a, fromOK := from.(hsm.Sketcher)
	b, toOK := to.(hsm.Sketcher)
	switch {
	case o.list:
		d.Abandoned = errAsked
		return false, nil
	case !fromOK || !toOK:
		d.Abandoned = errNoSketch
		return false, nil
	}
	s := &sketchRun{from: a, to: b, options: o, diff: d}
	if err := s.run(ctx); err != nil {
		if fatal(ctx, err) {
			return false, err
		}
		d.Abandoned = err
		return false, nil
	}
	return true, nil
}

// fatal tells whether there is no point in listing after err.
func fatal(ctx context.Context, err error) bool {
	for _, target := range []error{hsm.ErrLineage, hsm.ErrUnavailable, hsm.ErrSession} {
		if errors.Is(err, target) {
			return true
		}
	}
	return ctx.Err() != nil
}

type sketchRun struct {
	from, to         hsm.Sketcher
	fromPipe, toPipe *pipe[hsm.Cell]
	keys             hsm.FingerprintKeys
	diff             *Difference
	*options
}

func (s *sketchRun) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !s.rootsFirst {
		s.startCells(ctx, &wg)
	}
	s.diff.RoundTrips++
	if err := s.heads(ctx); err != nil {
		return err
	}
	if s.diff.FromRoot == s.diff.ToRoot {
		s.diff.Equal = true
		return nil
	}
	if s.hopeless() {
		return errCheaper
	}
	if s.rootsFirst {
		s.startCells(ctx, &wg)
		s.diff.RoundTrips++
	}
	return s.decode(ctx)
}

func (s *sketchRun) startCells(ctx context.Context, wg *sync.WaitGroup) {
	s.fromPipe = startPipe(ctx, wg, s.from.Cells(ctx, 0))
	s.toPipe = startPipe(ctx, wg, s.to.Cells(ctx, 0))
}

// heads asks both sides for root and keys, all four at the same time.
func (s *sketchRun) heads(ctx context.Context) error {
	var a, b hsm.FingerprintKeys
	err := together(ctx,
		func(ctx context.Context) (err error) { s.diff.FromRoot, err = s.from.Root(ctx); return err },
		func(ctx context.Context) (err error) { s.diff.ToRoot, err = s.to.Root(ctx); return err },
		func(ctx context.Context) (err error) { a, err = s.from.FingerprintKeys(ctx); return err },
		func(ctx context.Context) (err error) { b, err = s.to.FingerprintKeys(ctx); return err },
	)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if a != b {
		return fmt.Errorf("%w: the fingerprint keys differ", hsm.ErrLineage)
	}
	s.keys = a
	return nil
}

// limit is how many cells may cost what the lists cost, each counted on one
// side: half the objects of both.
func (s *sketchRun) limit() int {
	a, b := s.diff.FromRoot.Count, s.diff.ToRoot.Count
	objects := a/2 + b/2
	if objects > uint64(s.maxCells)*CellBytes/ObjectBytes { // also where a count is a lie
		return s.maxCells
	}
	return min(s.maxCells, max(freeCells, int(objects*ObjectBytes/CellBytes)))
}

// hopeless tells whether the counts alone show that the lists cost less: at
// least as many objects differ, and each takes more than 4/3 of a cell.
func (s *sketchRun) hopeless() bool {
	a, b := s.diff.FromRoot.Count, s.diff.ToRoot.Count
	atLeast := max(a, b) - min(a, b)
	return atLeast > uint64(s.limit())*3/4
}

// decode consumes cells until the difference is found.
func (s *sketchRun) decode(ctx context.Context) error {
	dec := NewDecoder(s.keys)
	for limit := s.limit(); !dec.Done(); {
		if dec.Cells() >= limit {
			return fmt.Errorf("%w: %d cells do not decode", errCheaper, dec.Cells())
		}
		if err := s.decodeCell(ctx, dec); err != nil {
			return err
		}
		s.diff.Cells++
		s.diff.SketchBytes += CellBytes
	}
	return s.diff.addItems(dec.FromOnly(), dec.ToOnly())
}

func (s *sketchRun) decodeCell(ctx context.Context, dec *Decoder) error {
	a, more, err := s.fromPipe.next(ctx)
	if err != nil || !more {
		return cellError("source", err)
	}
	b, more, err := s.toPipe.next(ctx)
	if err != nil || !more {
		return cellError("destination", err)
	}
	return dec.Add(a, b)
}

func cellError(side string, err error) error {
	if err == nil {
		err = errEnded
	}
	return fmt.Errorf("cells of the %s: %w", side, err)
}
