//go:build !linux

package soft

import "errors"

// syncer is there on Linux.
type syncer struct{}

func newSyncer() *syncer { return nil }

func (*syncer) close() error { return nil }

func (*syncer) sync(uintptr) error { return errors.ErrUnsupported }
