package soft

import (
	"errors"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// mechanism turns an error of package mech into one of the contract.
func mechanism(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mech.ErrSignature):
		return hsm.ErrSignature
	case errors.Is(err, mech.ErrDecrypt), errors.Is(err, mech.ErrUnwrap):
		return fmt.Errorf("%w: wrong key, parameters or data", hsm.ErrCrypto)
	}
	for _, e := range []error{mech.ErrKeyType, mech.ErrKeySize, mech.ErrCurve, mech.ErrKey, mech.ErrMechanism, mech.ErrHash, mech.ErrParam, mech.ErrDataLen} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", hsm.ErrInvalid, err)
		}
	}
	return fmt.Errorf("%w: %w", hsm.ErrCrypto, err)
}
