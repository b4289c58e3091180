package format

import "errors"

// The sentinels of decoding.
var (
	// ErrCorrupt: the bytes are not what a writer of this format wrote.
	ErrCorrupt = errors.New("corrupt")
	// ErrVersion: the first line names a format or version this software does
	// not know. Nothing after that line was read.
	ErrVersion = errors.New("unknown format version")
	// ErrIdentity: the identities at hand do not decrypt it.
	ErrIdentity = errors.New("no identity fits")
)
