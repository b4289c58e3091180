package rpc

import (
	"encoding/binary"
	"io"
)

// A frame is four bytes of length, the most significant first, and so many bytes. An
// empty frame asks for, or is, a sign of life.

const (
	frameHeader = 4
	// maxHello bounds frames before the caller has named its session.
	maxHello = 1 << 10
	// maxFrame bounds all others: batchBytes and the largest call or answer fit many
	// times.
	maxFrame = MaxMessage
	// readBytes is what a reader of frames starts with, keptBytes what it keeps when
	// nothing is left to read.
	readBytes = 4 << 10
	keptBytes = 64 << 10
)

// frames reads frames. Memory grows as bytes arrive, not as a length promises, and
// a read that was broken off loses nothing of what had come.
type frames struct {
	from io.Reader
	most int    // bytes of a frame
	buf  []byte // read and not taken
	rest []byte // its array
}

// whole takes the next frame if all of it has been read. It is good until the next
// call of next.
func (f *frames) whole() (frame []byte, ok bool, err error) {
	if len(f.buf) < frameHeader {
		return nil, false, nil
	}
	n := int64(binary.BigEndian.Uint32(f.buf))
	if n > int64(f.most) {
		return nil, false, invalid("a frame of %d bytes: want at most %d", n, f.most)
	}
	end := frameHeader + int(n)
	if len(f.buf) < end {
		return nil, false, nil
	}
	frame, f.buf = f.buf[frameHeader:end:end], f.buf[end:]
	return frame, true, nil
}

// next reads until there is a frame.
func (f *frames) next() ([]byte, error) {
	for {
		if frame, ok, err := f.whole(); ok || err != nil {
			return frame, err
		}
		if err := f.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads once.
func (f *frames) fill() error {
	switch {
	case len(f.buf) == 0 && (f.rest == nil || len(f.rest) > keptBytes):
		f.rest = make([]byte, readBytes)
	case len(f.buf) == len(f.rest):
		f.rest = make([]byte, 2*len(f.rest))
	}
	n := copy(f.rest, f.buf)
	more, err := f.from.Read(f.rest[n:])
	f.buf = f.rest[:n+more]
	if more > 0 {
		return nil // an error comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// appendFrame appends a frame of one message.
func appendFrame(b, message []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(message)))
	return append(b, message...)
}

// beginFrame leaves room for the length that endFrame writes.
func beginFrame(b []byte) []byte { return append(b[:0], 0, 0, 0, 0) }

func endFrame(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-frameHeader))
	return b
}
