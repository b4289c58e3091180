package hsmtest

import (
	"errors"
	"iter"
)

func errorIs(err, target error) bool { return errors.Is(err, target) }

// errOf reads some of a sequence and returns its error. Cells never end.
func errOf[T any](seq iter.Seq2[T, error]) error {
	n := 0
	for _, err := range seq {
		if err != nil {
			return err
		}
		if n++; n == 100 {
			break
		}
	}
	return nil
}
