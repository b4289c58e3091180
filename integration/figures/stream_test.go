package figures

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

// limitStream compresses and encrypts the objects as one stream.
func (v *vault) limitStream(b *testing.B) {
	id := newIdentity(b)
	b.SetBytes(v.size)
	for b.Loop() {
		stream(b, io.Discard, id.Recipient(), sequence(v.objects))
	}
	v.figures.set(b, "limit=zstd|age", usage{}, "one stream, in memory")
}

// limitUnstream decrypts and decompresses what limitStream makes.
func (v *vault) limitUnstream(b *testing.B) {
	id := newIdentity(b)
	var stored bytes.Buffer
	stream(b, &stored, id.Recipient(), sequence(v.objects))
	b.SetBytes(v.size)
	for b.Loop() {
		plain, err := age.Decrypt(bytes.NewReader(stored.Bytes()), id)
		if err != nil {
			b.Fatal(err)
		}
		z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, z); err != nil || n != v.size {
			b.Fatal(n, err)
		}
		z.Close()
	}
	v.figures.set(b, "limit=age|zstd", usage{}, "one stream back, in memory")
}

// pipe does what a script would: it reads all objects of an HSM as one stream, through zstd
// and age, into the store, in pieces of the size of packs, of which one is stored while the next one
// is made. Nothing can be restored from that alone, verified, or added to.
func (v *vault) pipe(b *testing.B) {
	id := newIdentity(b)
	c, err := cluster.Open(b.Context(), v.profile, cluster.Credential{Identity: v.profile.AppliancePath()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	sources, _, err := c.Sources(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(v.size)
	for range b.N {
		b.StopTimer()
		to, err := open.Open(b.Context(), v.store(b))
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		w := newPieces(b.Context(), to)
		stream(b, w, id.Recipient(), sources[0].Session.Extract(b.Context(), v.refs()))
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
	v.figures.set(b, "pipe=hsm|zstd|age|store", usage{}, "one stream, as a script would")
}

func newIdentity(b *testing.B) *age.HybridIdentity {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		b.Fatal(err)
	}
	return id
}

func (v *vault) refs() iter.Seq[hsm.KeyRef] {
	return func(yield func(hsm.KeyRef) bool) {
		for _, m := range v.objects {
			if !yield(m.Ref) {
				return
			}
		}
	}
}

func stream(b *testing.B, to io.Writer, recipient age.Recipient, objects iter.Seq2[hsm.MaskedObject, error]) {
	sealed, err := age.Encrypt(to, recipient)
	if err != nil {
		b.Fatal(err)
	}
	z, err := zstd.NewWriter(sealed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	for m, err := range objects {
		if err != nil {
			b.Fatal(err)
		}
		if _, err := z.Write(m.Bytes); err != nil {
			b.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	if err := sealed.Close(); err != nil {
		b.Fatal(err)
	}
}

// pieces is a stream in a store.
type pieces struct {
	full  chan []byte
	piece []byte
	work  *errgroup.Group
	ctx   context.Context // done once a piece could not be stored
}

const pieceSize = 16 << 20

func newPieces(ctx context.Context, to storage.Store) *pieces {
	p := &pieces{full: make(chan []byte), piece: make([]byte, 0, pieceSize)}
	p.work, p.ctx = errgroup.WithContext(ctx)
	p.work.Go(func() error {
		n := 0
		for b := range p.full {
			n++
			if err := to.Put(p.ctx, fmt.Sprintf("stream/%06d", n), bytes.NewReader(b), int64(len(b))); err != nil {
				return err
			}
		}
		return nil
	})
	return p
}

// Write implements io.Writer.
func (p *pieces) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		some := min(len(b), pieceSize-len(p.piece))
		p.piece = append(p.piece, b[:some]...)
		n, b = n+some, b[some:]
		if len(p.piece) < pieceSize {
			continue
		}
		if err := p.send(); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (p *pieces) send() error {
	select {
	case p.full <- p.piece:
		p.piece = make([]byte, 0, pieceSize)
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// Close stores the rest.
func (p *pieces) Close() error {
	var err error
	if len(p.piece) > 0 {
		err = p.send()
	}
	close(p.full)
	if e := p.work.Wait(); e != nil {
		return e
	}
	return err
}
