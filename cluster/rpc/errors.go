package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// ErrInternal: something went wrong inside the HSM that the contract has no
// word for. Its log says what; the wire does not. The operation may or may not
// have been done.
var ErrInternal = errors.New("internal error")

// errOlder: the other side does not know the request, and did nothing.
var errOlder = errors.New("older software")

// coded is one sentinel on the wire.
type coded struct {
	code     uint32 // stable for ever
	name     string // for metrics
	sentinel error
	grpc     codes.Code // for tools that know gRPC only
}

var table = []coded{
	{1, "invalid", hsm.ErrInvalid, codes.InvalidArgument},
	{2, "not-found", hsm.ErrNotFound, codes.NotFound},
	{3, "exist", hsm.ErrExist, codes.AlreadyExists},
	{4, "denied", hsm.ErrDenied, codes.PermissionDenied},
	{5, "login", hsm.ErrLogin, codes.Unauthenticated},
	{6, "locked", hsm.ErrLocked, codes.PermissionDenied},
	{7, "session", hsm.ErrSession, codes.Unauthenticated},
	{8, "attribute", hsm.ErrAttribute, codes.FailedPrecondition},
	{9, "lineage", hsm.ErrLineage, codes.FailedPrecondition},
	{10, "conflict", hsm.ErrConflict, codes.FailedPrecondition},
	{11, "corrupt", hsm.ErrCorrupt, codes.DataLoss},
	{12, "future", hsm.ErrFuture, codes.FailedPrecondition},
	{13, "destroyed", hsm.ErrDestroyed, codes.NotFound},
	{14, "op", hsm.ErrOp, codes.FailedPrecondition},
	{15, "signature", hsm.ErrSignature, codes.FailedPrecondition},
	{16, "crypto", hsm.ErrCrypto, codes.FailedPrecondition},
	{17, "full", hsm.ErrFull, codes.ResourceExhausted},
	{18, "unavailable", hsm.ErrUnavailable, codes.Unavailable},
	{19, "internal", ErrInternal, codes.Internal},
	{20, "masking-key", hsm.ErrMaskingKey, codes.FailedPrecondition},
	{21, "starting", hsm.ErrStarting, codes.Unavailable},
	{22, "late", hsm.ErrLate, codes.Aborted},
	{23, "quorum", hsm.ErrQuorum, codes.FailedPrecondition},
	{24, "template", hsm.ErrTemplate, codes.FailedPrecondition},
	{25, "mfa", hsm.ErrMFA, codes.Unauthenticated},
}

// textError is an error with the text of the other side that matches sentinels.
type textError struct {
	text string
	is   []error
}

func (e *textError) Error() string   { return e.text }
func (e *textError) Unwrap() []error { return e.is }

// codeName names an error for metrics: "ok", "canceled", "deadline", or the
// name of the first sentinel it matches.
func codeName(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	}
	for _, c := range table {
		if errors.Is(err, c.sentinel) {
			return c.name
		}
	}
	return "internal"
}

// toFailure puts an error on the wire. Errors outside the contract become
// ErrInternal, and their text stays here: known tells the caller to log it.
func toFailure(err error) (f *pb.Failure, known bool) {
	f = &pb.Failure{Text: clip(err.Error())}
	for _, c := range table {
		if errors.Is(err, c.sentinel) {
			f.Codes = append(f.Codes, c.code)
		}
	}
	if len(f.Codes) == 0 {
		return &pb.Failure{Codes: []uint32{19}, Text: "internal error in the HSM; its log says more"}, false
	}
	return f, true
}

func clip(s string) string {
	if len(s) > maxFailure {
		s = s[:maxFailure]
	}
	return strings.ToValidUTF8(s, "�")
}

// toStatus is toFailure as a gRPC status. Context errors keep gRPC's own codes.
func toStatus(err error) (st error, known bool) {
	switch {
	case err == nil:
		return nil, true
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "canceled"), true
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "deadline exceeded"), true
	}
	f, known := toFailure(err)
	s := status.New(table[f.Codes[0]-1].grpc, f.Text)
	if with, err := s.WithDetails(f); err == nil {
		s = with
	}
	return s.Err(), known
}

// fromFailure reads a failure of the other side.
func fromFailure(f *pb.Failure) error {
	e := &textError{text: clip(f.Text)}
	for _, code := range f.Codes {
		if code > 0 && int(code) <= len(table) && len(e.is) < len(table) {
			e.is = append(e.is, table[code-1].sentinel)
		}
	}
	if len(e.is) == 0 {
		e.is = []error{ErrInternal}
	}
	return e
}

// fromStatus reads the error of a call. address names the HSM, cause is what
// is known of its connection, if anything.
func fromStatus(ctx context.Context, err error, address string, cause error) error {
	s, ok := status.FromError(err)
	for _, d := range s.Details() {
		if f, ok := d.(*pb.Failure); ok {
			return fromFailure(f)
		}
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("HSM at %s: %w", address, ctxErr)
	}
	if !ok {
		return unreachable(address, err)
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		return fmt.Errorf("HSM at %s: %w", address, context.DeadlineExceeded)
	case codes.ResourceExhausted:
		return &textError{fmt.Sprintf("invalid: HSM at %s: the message is larger than %d bytes; send less at a time", address, MaxMessage), []error{hsm.ErrInvalid}}
	case codes.Internal:
		if strings.Contains(s.Message(), "marshal") {
			return &textError{fmt.Sprintf("invalid: HSM at %s: a name in the request is not UTF-8", address), []error{hsm.ErrInvalid}}
		}
	case codes.Unimplemented:
		return &textError{fmt.Sprintf("HSM at %s does not know this request; its software is older", address), []error{hsm.ErrUnavailable, errOlder}}
	}
	return unreachable(address, cause)
}

// unreachable is what a caller reads when there is no connection.
func unreachable(address string, cause error) error {
	if cause == nil {
		return &textError{fmt.Sprintf("HSM at %s cannot be reached: the connection was lost", address), []error{hsm.ErrUnavailable}}
	}
	return &textError{fmt.Sprintf("HSM at %s cannot be reached: %s", address, cause), []error{hsm.ErrUnavailable, cause}}
}

// invalid is a refusal of a field that came over the wire.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{hsm.ErrInvalid}, args...)...)
}
