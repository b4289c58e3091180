package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
)

// Read yields every entry in order while checking the chain; it ends with
// ErrBroken, naming the line, where the chain does not hold. A torn last line
// is left out.
func Read(r io.Reader, each func(Entry) error) error {
	_, err := check(r, each)
	return err
}

// state is where a log ends: size counts the bytes of whole entries.
type state struct {
	seq, reboot uint64
	last        string
	size        int64
}

func check(r io.Reader, each func(Entry) error) (state, error) {
	var s state
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if err == io.EOF {
			return s, nil // a torn last line, if any, is left out
		}
		if err != nil {
			return s, fmt.Errorf("%w: line %d: %w", ErrBroken, s.seq+1, err)
		}
		size := int64(len(line))
		line = bytes.TrimSuffix(line, []byte("\n"))
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return s, fmt.Errorf("%w: line %d is not an entry", ErrBroken, s.seq+1)
		}
		if e.Sequence != s.seq+1 || e.Previous != s.last || e.Reboot < s.reboot {
			return s, fmt.Errorf("%w: line %d does not follow from the line before it", ErrBroken, s.seq+1)
		}
		s = state{seq: e.Sequence, reboot: e.Reboot, last: hashLine(line), size: s.size + size}
		if each != nil {
			if err := each(e); err != nil {
				return s, err
			}
		}
	}
}

func hashLine(line []byte) string {
	h := sha256.Sum256(line)
	return hex.EncodeToString(h[:])
}
