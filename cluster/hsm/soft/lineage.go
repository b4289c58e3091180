package soft

import (
	"context"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Envelope implements hsm.Session. No custodians means those of the settings;
// only an admin may name others, since whoever opens the envelope has the
// lineage.
func (s *session) Envelope(ctx context.Context, custodians []string, threshold int) (sealed []byte, err error) {
	done, err := s.enter(ctx, hsm.RoleAdmin, hsm.RoleAppliance)
	if err != nil {
		return nil, err
	}
	defer done()
	defer func() {
		s.audit(ctx, "envelope", 0, fmt.Sprintf("custodians %d threshold %d", len(custodians), threshold), err)
	}()
	policy := s.h.settings.Load()
	if len(custodians) == 0 {
		custodians, threshold = policy.Custodians, policy.Threshold
	}
	if err := s.checkCustodians(custodians, threshold, policy); err != nil {
		return nil, err
	}
	if s.h.opts.Seal == nil {
		return nil, fmt.Errorf("%w: HSM %s was started without a way to seal envelopes", hsm.ErrUnavailable, s.h.opts.ID)
	}
	plain := hsm.EncodeRecovery(s.h.keys(), s.h.opts.CA)
	defer plain.Wipe()
	return s.h.opts.Seal(ctx, plain, slices.Clone(custodians), threshold)
}

func (s *session) checkCustodians(custodians []string, threshold int, policy *hsm.Settings) error {
	named := &hsm.Settings{MinCopies: 1, Custodians: custodians, Threshold: threshold}
	if err := checkSettings(named); err != nil {
		return err
	}
	if len(custodians) == 0 || threshold < 1 {
		return fmt.Errorf("%w: there are no custodians to seal to; an admin sets them with cluster settings", hsm.ErrInvalid)
	}
	same := threshold == policy.Threshold && slices.Equal(slices.Sorted(slices.Values(custodians)), slices.Sorted(slices.Values(policy.Custodians)))
	if s.who.Role != hsm.RoleAdmin && !same {
		return fmt.Errorf("%w: %s may have the envelope sealed to the cluster's custodians only; an admin may name others", hsm.ErrDenied, s.whoami())
	}
	return nil
}

// Sign implements hsm.Session.
func (s *session) Sign(ctx context.Context, purpose hsm.Purpose, message []byte) (sig hsm.LineageSignature, err error) {
	roles := []hsm.Role{hsm.RoleAdmin, hsm.RoleAppliance, hsm.RoleHSM}
	if purpose == hsm.PurposeChallenge {
		roles = everyone
	}
	done, err := s.enter(ctx, roles...)
	if err != nil {
		return sig, err
	}
	defer done()
	defer func() { s.audit(ctx, "sign", 0, string(purpose), err) }()
	switch purpose {
	case hsm.PurposeManifest, hsm.PurposeChallenge, hsm.PurposeReport:
		return s.h.keys().Sign(purpose, message), nil
	}
	return sig, fmt.Errorf("%w: there is no purpose %q to sign for", hsm.ErrInvalid, purpose)
}
