package storage

import (
	"fmt"
	"strings"
)

const (
	// MaxName bounds a name in bytes. S3 allows 1,024 for the prefix of a
	// location and the name together; half is left to the prefix.
	MaxName = 512
	// MaxSegment bounds one segment of a name. File systems allow 255.
	MaxSegment = 200
)

// CheckName returns nil if name may name an object and an error wrapping
// ErrName otherwise. A name is one or more segments separated by single
// slashes; a segment is 1 to MaxSegment bytes of a-z, 0-9, '.', '_' and '-',
// and neither "." nor "..". So a name means the same in a file system (also one
// that ignores case), in a URL and in S3.
func CheckName(name string) error {
	if len(name) > MaxName {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrName, len(name), MaxName)
	}
	for segment := range strings.SplitSeq(name, "/") {
		if err := checkSegment(name, segment); err != nil {
			return err
		}
	}
	return nil
}

// CheckPrefix returns nil if prefix may begin a name and an error wrapping
// ErrName otherwise: it is empty, a name, or a name and a slash.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return CheckName(strings.TrimSuffix(prefix, "/"))
}

func checkSegment(name, segment string) error {
	switch {
	case segment == "" || segment == "." || segment == "..":
		return fmt.Errorf("%w: %.80q has the segment %q", ErrName, name, segment)
	case len(segment) > MaxSegment:
		return fmt.Errorf("%w: %.80q… has a segment of %d bytes, at most %d are allowed", ErrName, name, len(segment), MaxSegment)
	}
	if i := strings.IndexFunc(segment, notInName); i >= 0 {
		return fmt.Errorf("%w: %.80q holds characters other than a-z, 0-9, '.', '_', '-' and '/'", ErrName, name)
	}
	return nil
}

func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}
