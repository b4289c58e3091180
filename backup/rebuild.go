package backup

import (
	"context"
	"fmt"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// index reads the index of a pack. If it is damaged, missing or Unreadable, whoever can
// decrypt the pack needs no index: it is made again of the pack, and is the same
// to the byte or refused. So a damaged index costs time and not one key. The
// error is that of the index if the pack does not help.
func (s *Snapshot) index(ctx context.Context, p format.PackEntry) (format.Index, error) {
	x, err := loadIndex(ctx, s.store, s.Lineage(), p)
	if !damaged(err) && !Unreadable(err) || len(s.options.Identities) == 0 {
		return x, err
	}
	again, rebuildErr := s.rebuildIndex(ctx, p)
	if rebuildErr != nil {
		if ctx.Err() != nil {
			return format.Index{}, ctx.Err()
		}
		return format.Index{}, fmt.Errorf("%w; nor can it be made again: %w", err, rebuildErr)
	}
	return again, nil
}

func (s *Snapshot) rebuildIndex(ctx context.Context, p format.PackEntry) (format.Index, error) {
	buf := packBuffers.Get().(*[]byte)
	defer packBuffers.Put(buf)
	if err := fetchPack(ctx, s.store, p, buf); err != nil {
		return format.Index{}, err
	}
	x := format.Index{Pack: p.Pack, PackSize: p.Size, Lineage: s.Lineage()}
	err := s.eachBlock(ctx, *buf, func(_ int, b *format.BlockData) error {
		x.Blocks = append(x.Blocks, format.Block{Objects: uint32(b.Len()), Length: uint32(b.Size())})
		for i := range b.Len() {
			joined, err := hsm.JoinMasked(b.Columns(i))
			if err != nil {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			m, err := hsm.PeekMasked(joined)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			x.Items = append(x.Items, m.Object)
		}
		return ctx.Err()
	})
	if err != nil {
		return format.Index{}, fmt.Errorf("%s: %w", format.PackPath(p.Pack), err)
	}
	if format.NameOf(format.EncodeIndex(x)) != p.Index {
		return format.Index{}, fmt.Errorf("%w: %s: what it holds is not what its index said", ErrCorrupt, format.PackPath(p.Pack))
	}
	return x, nil
}
