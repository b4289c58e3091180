package rpc

import (
	"bytes"
	"fmt"
	"sync"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// codec is gRPC's own for protobuf, but for the one message that carries a million
// objects: masked objects of an ExtractReply go from the buffer they were gathered in
// onto the wire, and from the wire into the memory they stay in. By way of protobuf each
// byte would be copied twice more at either end, through buffers that are cleared before.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if p, ok := v.(*packedReply); ok {
		return p.marshal(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	p, ok := v.(*extractReply)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	parts := make([][]byte, len(data))
	for i, b := range data {
		parts[i] = b.ReadOnlyData()
	}
	return p.unmarshal(bytes.Join(parts, nil))
}

// Fields of ExtractReply (pb/hsm.proto).
const (
	replyObjects = 1
	replyDone    = 2
	replyPacked  = 3
)

// packedReply is an ExtractReply to be sent. Whoever sends it gives the buffer away.
type packedReply struct {
	packed *[]byte // of extractBuffers
	done   bool
}

func (p *packedReply) marshal() mem.BufferSlice {
	var head []byte
	if p.done {
		head = protowire.AppendVarint(protowire.AppendTag(head, replyDone, protowire.VarintType), 1)
	}
	if len(*p.packed) == 0 {
		extractBuffers.Put(p.packed)
		return mem.BufferSlice{mem.SliceBuffer(head)}
	}
	head = protowire.AppendVarint(protowire.AppendTag(head, replyPacked, protowire.BytesType), uint64(len(*p.packed)))
	return mem.BufferSlice{mem.SliceBuffer(head), mem.NewBuffer(p.packed, &extractBuffers)}
}

// extractReply is an ExtractReply that was received.
type extractReply struct {
	objects []*pb.Masked // of an older HSM
	packed  []byte
	done    bool
}

// unmarshal decodes what protobuf decodes; packed aliases b.
func (p *extractReply) unmarshal(b []byte) error {
	*p = extractReply{}
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 || !field.IsValid() {
			return fmt.Errorf("answer with objects: %w", protowire.ParseError(min(n, -1)))
		}
		size := protowire.ConsumeFieldValue(field, kind, b[n:])
		if size < 0 {
			return fmt.Errorf("answer with objects: %w", protowire.ParseError(size))
		}
		if err := p.field(field, kind, b[n:n+size]); err != nil {
			return err
		}
		b = b[n+size:]
	}
	return nil
}

// field takes one field, whose value is whole. Fields of a later version are passed over.
func (p *extractReply) field(field protowire.Number, kind protowire.Type, value []byte) error {
	switch {
	case field == replyDone && kind == protowire.VarintType:
		v, _ := protowire.ConsumeVarint(value)
		p.done = protowire.DecodeBool(v)
	case field == replyPacked && kind == protowire.BytesType:
		p.packed, _ = protowire.ConsumeBytes(value)
	case field == replyObjects && kind == protowire.BytesType:
		v, _ := protowire.ConsumeBytes(value)
		m := &pb.Masked{}
		if err := proto.Unmarshal(v, m); err != nil {
			return fmt.Errorf("answer with objects: %w", err)
		}
		p.objects = append(p.objects, m)
	}
	return nil
}

// extractBuffers hold what extractPacked sends until it is on the wire: masked objects
// and nothing else, so they need not be cleared.
var extractBuffers bufferPool

// bufferPool is a mem.BufferPool of buffers for one batch of masked objects.
type bufferPool struct{ pool sync.Pool }

// Get implements mem.BufferPool.
func (p *bufferPool) Get(length int) *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok && cap(*b) >= length {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, max(length, batchBytes+32<<10))
	return &b
}

// Put implements mem.BufferPool.
func (p *bufferPool) Put(b *[]byte) { p.pool.Put(b) }
