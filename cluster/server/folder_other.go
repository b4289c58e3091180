//go:build !unix

package server

import (
	"errors"
	"fmt"
	"os"
)

// errNotHere: what keeps an HSM's folder from other users, from a second process and from
// half a rename is not there.
var errNotHere = fmt.Errorf("HSMs run on Unix systems only; here the command line works with those that run elsewhere: %w", errors.ErrUnsupported)

func lockExclusive(*os.File) error { return errNotHere }

func renameFolder(string, string) error { return errNotHere }
