package pkcs11

import (
	"context"
	"errors"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// codes maps the errors of the cluster, the first that fits.
var codes = []struct {
	err error
	rv  ck.RV
}{
	{cluster.ErrAvailability, ck.FunctionFailed},
	{cluster.ErrMinCopies, ck.FunctionFailed},
	{hsm.ErrQuorum, ck.FunctionRejected},
	{hsm.ErrTemplate, ck.TemplateInconsistent},
	{hsm.ErrLogin, ck.PinIncorrect},
	{hsm.ErrLocked, ck.PinLocked},
	{hsm.ErrDestroyed, ck.ObjectHandleInvalid},
	{hsm.ErrSignature, ck.SignatureInvalid},
	{hsm.ErrCrypto, ck.EncryptedDataInvalid},
	{hsm.ErrAttribute, ck.KeyFunctionNotPermitted},
	{hsm.ErrDenied, ck.ActionProhibited},
	{hsm.ErrFull, ck.DeviceMemory},
	{hsm.ErrUnavailable, ck.DeviceError},
	{hsm.ErrSession, ck.DeviceError},
	{hsm.ErrNotFound, ck.ObjectHandleInvalid},
	{hsm.ErrInvalid, ck.FunctionFailed},
	{context.Canceled, ck.FunctionCanceled},
	{context.DeadlineExceeded, ck.DeviceError},
}

// codeOf is the return value for an error that no call has translated by itself.
func codeOf(err error) ck.RV {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.rv
		}
	}
	return ck.GeneralError
}

// as replaces what some errors of the cluster mean in one call.
func as(err error, pairs map[error]ck.RV) error {
	for e, rv := range pairs {
		if errors.Is(err, e) && !errors.Is(err, cluster.ErrAvailability) && !errors.Is(err, hsm.ErrUnavailable) {
			return rv
		}
	}
	return err
}
