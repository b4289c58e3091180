package synckey

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// nonceSize is the size of a challenge's nonce in bytes.
const nonceSize = 32

// checkMaskingKeys refuses a cluster that could not open what the other seals:
// hsm.ErrMaskingKey. A rotation stays in its cluster until custodians take the new
// key to the others.
func checkMaskingKeys(ctx context.Context, from, to *side) error {
	theirs, err := from.MaskingKeys(ctx)
	if err != nil {
		return from.wrap(err)
	}
	ours, err := to.MaskingKeys(ctx)
	if err != nil {
		return to.wrap(err)
	}
	for _, epoch := range theirs.Held {
		if !slices.Contains(ours.Common, epoch) {
			return fmt.Errorf("%w: the %s has rotated its masking key: the %s does not hold that of epoch %d, and takes it over with the consent of custodians only", hsm.ErrMaskingKey, from.name, to.name, epoch)
		}
	}
	return nil
}

// challengeLabel keeps an answer from serving any other use of the purpose.
const challengeLabel = "hsmbackup synckey challenge v1\x00"

// challengeMessage is what one HSM signs (PROTOCOL.md): fresh, and bound to the
// HSM, to its cluster and to the cluster it is to be reconciled with.
func challengeMessage(nonce []byte, id hsm.HSMID, own, peer hsm.ClusterID) []byte {
	m := append([]byte(challengeLabel), nonce...)
	for _, v := range []uint64{uint64(id), uint64(own), uint64(peer)} {
		m = binary.BigEndian.AppendUint64(m, v)
	}
	return m
}

// challenge has HSMs sign with the lineage's key, which only an HSM that holds
// the lineage's secret can. Those that answer rightly are proven; those that
// are away are not, and gone says why the first one is. One that answers
// wrongly is hsm.ErrLineage.
func (s *side) challenge(ctx context.Context, hsms []cluster.Source) (gone, err error) {
	for _, a := range ask(ctx, s, hsms, s.prove) {
		switch {
		case a.err == nil:
			s.proven[a.from.ID] = true
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !away(a.err):
			return nil, s.wrap(fmt.Errorf("challenge to %s: %w", a.from.ID, a.err))
		default:
			gone = cmp.Or(gone, fmt.Errorf("%s: %w", a.from.ID, a.err))
		}
	}
	return gone, nil
}

func (s *side) prove(ctx context.Context, h cluster.Source) (struct{}, error) {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	message := challengeMessage(nonce, h.ID, s.Profile().ID, s.peer)
	sig, err := h.Sign(ctx, hsm.PurposeChallenge, message)
	if err != nil {
		return struct{}{}, err
	}
	if err := sig.Verify(s.Lineage(), hsm.PurposeChallenge, message); err != nil {
		return struct{}{}, fmt.Errorf("%w: it says it is of %s and does not prove it: %w", hsm.ErrLineage, s.Lineage(), err)
	}
	return struct{}{}, nil
}
