package rpc

import (
	"context"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// half is one call of a pair, with its arguments.
type half struct {
	call Call
	args Args
}

// pair decodes the two requests of a pair: a beginning, and what does it, of the session
// that the pair names. An error ends the connection.
func (c *conn) pair(args Args) (begin, do half, err error) {
	for i, r := range []*half{&begin, &do} {
		var rv ck.RV
		if r.call, r.args, rv, err = c.decode(frame{body: args.Bytes(1 + i)}); err != nil {
			return begin, do, err
		}
		if rv != ck.OK { // no call of a pair is unknown
			return begin, do, fmt.Errorf("%w: a pair with call %d", errMalformed, r.call)
		}
	}
	session := args.Ulong(0)
	if want, known := does[begin.call]; !known || do.call != want || begin.args.Ulong(0) != session || do.args.Ulong(0) != session {
		return begin, do, fmt.Errorf("%w: a pair of %s and %s", errMalformed, begin.call, do.call)
	}
	return begin, do, nil
}

// answerPair begins, and if that succeeds answers what does it.
func (c *conn) answerPair(ctx context.Context, code uint32, begin, do half) {
	if _, err := c.app.Call(ctx, begin.call, begin.args); err != nil {
		c.reply(encodeFailure(code, err))
		return
	}
	c.answer(ctx, code, do.call, do.args)
}
