package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// errFrame: a header that no peer sends. The connection ends.
var errFrame = errors.New("malformed frame")

// frame is one request.
type frame struct {
	code uint32
	body []byte
	// arrived gives back the place that a large one has; the caller calls it once the
	// frame is accounted for. Nil: it has none.
	arrived func()
}

// frames reads frames from a stream. Its buffer grows as bytes arrive, not as they are
// announced. What it has read and not returned is kept: next may be called again
// after a deadline has passed.
type frames struct {
	from io.Reader
	buf  []byte
	kept []byte // of keptBytes, which buf may lie in; zero but for that
	// large is called before a frame is read that is larger than largeFrame, and
	// what it returns when that fails, or by the caller (frame.arrived).
	large func() (done func(), err error)
}

// readStep is by how much room grows at least; keptBytes stay between small
// frames.
const (
	readStep  = 4 << 10
	keptBytes = 16 << 10
)

// next returns the next frame; io.EOF at the end of the stream between two frames.
func (f *frames) next() (frame, error) {
	for len(f.buf) < headerSize {
		if err := f.more(headerSize); err != nil {
			return frame{}, err
		}
	}
	code, options, body := binary.BigEndian.Uint32(f.buf), binary.BigEndian.Uint32(f.buf[4:]), binary.BigEndian.Uint32(f.buf[8:])
	if code == 0 || options > maxOptions || body > MaxFrame {
		return frame{}, fmt.Errorf("%w: code %d, %d bytes of options, %d of body; at most %d and %d", errFrame, code, options, body, maxOptions, MaxFrame)
	}
	need := headerSize + int(options) + int(body)
	var arrived func()
	if need > largeFrame && f.large != nil {
		done, err := f.large()
		if err != nil {
			return frame{}, err
		}
		arrived = done
	}
	for len(f.buf) < need {
		if err := f.more(need); err != nil {
			if arrived != nil {
				arrived()
			}
			return frame{}, err
		}
	}
	whole := f.buf[headerSize+int(options) : need : need]
	f.buf = f.buf[need:]
	if len(whole) <= smallFrame { // what is returned belongs to the caller
		mine := append([]byte(nil), whole...)
		clear(whole) // it may be a PIN
		whole = mine
	} else {
		f.buf, f.kept = append([]byte(nil), f.buf...), nil
	}
	if len(f.buf) == 0 {
		f.buf = f.kept[:0]
	}
	return frame{code: code, body: whole, arrived: arrived}, nil
}

// more reads once, what there is room for: so that each byte is moved a few times at most,
// however they arrive, room is made when there is none, and at the end of what is kept.
func (f *frames) more(need int) error {
	free := cap(f.buf) - len(f.buf)
	if free == 0 || free < readStep && cap(f.buf) < keptBytes {
		f.grow(len(f.buf) + max(min(need-len(f.buf), len(f.buf)), readStep))
	}
	n, err := f.from.Read(f.buf[len(f.buf):cap(f.buf)])
	f.buf = f.buf[:len(f.buf)+n]
	switch {
	case n > 0:
		return nil
	case err == io.EOF && len(f.buf) > 0:
		return io.ErrUnexpectedEOF
	}
	return err
}

// grow makes room for n bytes.
func (f *frames) grow(n int) {
	if n > keptBytes {
		f.buf = append(make([]byte, 0, n), f.buf...)
		clear(f.kept)
		return
	}
	if f.kept == nil {
		f.kept = make([]byte, keptBytes)
	}
	got := copy(f.kept, f.buf)
	clear(f.kept[got:])
	f.buf = f.kept[:got]
}
