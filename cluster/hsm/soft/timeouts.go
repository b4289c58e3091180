package soft

import (
	"fmt"
	"strconv"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The registers of the policy of quorum values that are timeouts, in seconds.
const (
	registerGenerated = "timeout/" + hsm.TimeoutGenerated
	registerApproved  = "timeout/" + hsm.TimeoutApproved
)

// readTimeouts reads them. What is no timeout is taken for none: a token that is good
// for no time at all would keep all from approving.
func readTimeouts(r *hsm.Record) hsm.QuorumTimeouts {
	value := func(register string) time.Duration {
		d, err := hsm.ParseTokenTimeout(string(r.Registers[register].Value))
		if err != nil {
			return hsm.TokenLife
		}
		return d
	}
	return hsm.QuorumTimeouts{Generated: value(registerGenerated), Approved: value(registerApproved)}
}

// changeTimeout sets how long quorum tokens are good.
func (s *session) changeTimeout(c hsm.Change) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleAdmin {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin)
	}
	d, err := hsm.ParseTokenTimeout(c.Value)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	register := map[string]string{hsm.TimeoutGenerated: registerGenerated, hsm.TimeoutApproved: registerApproved}[c.Name]
	if register == "" {
		return hsm.MaskedObject{}, fmt.Errorf("%w: timeout of %.40q tokens: want %s or %s", hsm.ErrInvalid, c.Name, hsm.TimeoutGenerated, hsm.TimeoutApproved)
	}
	return s.h.setQuorum(c, register, strconv.Itoa(int(d/time.Second)))
}
