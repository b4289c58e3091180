package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

func (p *program) maskingKeyCommands() []*cli.Command {
	timeout := &cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "how long to wait until every HSM seals with the new key"}
	return []*cli.Command{
		{
			Name: "rotate-masking-key", Usage: "seal keys under a new masking key from now on, as an admin", ArgsUsage: "[CLUSTER]", Action: p.rotateMaskingKey,
			Description: "Example: hsmbackup cluster rotate-masking-key ./east\n\nEvery HSM must be there. Digests and roots stay; a key is sealed anew when it changes next. Older masking keys are kept, so that every snapshot from before can be restored; the next snapshot seals a recovery envelope with all of them.",
			Flags:       append(clusterFlags(), timeout),
		},
		{
			Name: "adopt-masking-keys", Usage: "take over the masking keys of another cluster of the lineage, as an admin and with the custodians' consent", ArgsUsage: "[CLUSTER]", Action: p.adoptMaskingKeys,
			Description: "Examples:\n  hsmbackup cluster adopt-masking-keys ./west --source ./east --identity custodian.txt\n  hsmbackup cluster adopt-masking-keys ./west --from s3://backups/payments?region=eu-west-1 --identity custodian.txt",
			Flags: append(append(clusterFlags(), identityFlags()...), timeout,
				&cli.StringFlag{Name: "source", Usage: "running `CLUSTER` to take them from"},
				&cli.StringFlag{Name: "from", Usage: "store `LOCATION` to take them from: the newest snapshot's recovery envelope"}),
		},
	}
}

func (p *program) rotateMaskingKey(cc *cli.Context) error {
	return p.withNamed(cc, target(cc), who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		ctx, cancel := context.WithTimeout(ctx, cc.Duration("timeout"))
		defer cancel()
		m, err := c.RotateMaskingKey(ctx)
		if err != nil {
			return err
		}
		return p.maskingKeys(m)
	})
}

// maskingKeys prints how far a rotation is. One that is not done yet is a doubt.
func (p *program) maskingKeys(m cluster.MaskingKeys) error {
	doc := map[string]any{"sealing": m.Sealing, "newest": m.Newest, "epochs": notNil(m.Held), "pending": notNil(m.Pending), "done": m.Done()}
	err := p.result(doc, func(w io.Writer) {
		if m.Done() {
			fmt.Fprintf(w, "every HSM seals with the masking key of epoch %d; %d masking keys are kept\n", m.Newest, len(m.Held))
			return
		}
		fmt.Fprintf(w, "the masking key of epoch %d is made and does not seal on %v yet; the HSMs finish by themselves\n", m.Newest, m.Pending)
	})
	if err == nil && !m.Done() {
		return errPrinted
	}
	return err
}

func (p *program) adoptMaskingKeys(cc *cli.Context) error {
	if cc.IsSet("source") == cc.IsSet("from") {
		return usagef("name either a running --source CLUSTER or a store with --from LOCATION")
	}
	o, err := p.openOptions(cc, p.progress("read"))
	if err != nil {
		return err
	}
	if len(o.Identities) == 0 {
		return usagef("no identity: give --identity FILE for as many custodians as the threshold asks for")
	}
	var recovery hsm.Secret
	if cc.IsSet("source") {
		src, err := p.open(cc.Context, cc.String("source"), who{appliance: applianceToo})
		if err != nil {
			return err
		}
		recovery, err = recoveryOf(cc.Context, src, o.Identities)
		if err = errors.Join(err, src.Close()); err != nil {
			return err
		}
	} else if recovery, err = recoveryIn(cc, o); err != nil {
		return err
	}
	defer recovery.Wipe()
	return p.withNamed(cc, target(cc), who{file: cc.String("credential")}, func(ctx context.Context, c *cluster.Cluster) error {
		ctx, cancel := context.WithTimeout(ctx, cc.Duration("timeout"))
		defer cancel()
		m, err := c.AdoptMaskingKeys(ctx, recovery)
		if err != nil {
			return err
		}
		return p.maskingKeys(m)
	})
}

// recoveryOf has a running cluster seal its recovery envelope to its custodians,
// and opens it as they would.
func recoveryOf(ctx context.Context, c *cluster.Cluster, custodians []backup.Identity) (hsm.Secret, error) {
	sealed, err := c.Envelope(ctx, nil, 0)
	if err != nil {
		return hsm.Secret{}, err
	}
	return backup.OpenEnvelope(sealed, custodians)
}

// recoveryIn opens the newest recovery envelope of a store.
func recoveryIn(cc *cli.Context, o backup.OpenOptions) (hsm.Secret, error) {
	store, err := open.Open(cc.Context, cc.String("from"))
	if err != nil {
		return hsm.Secret{}, err
	}
	if err := trustStore(cc.Context, store, o); err != nil {
		return hsm.Secret{}, err
	}
	s, err := backup.Open(cc.Context, store, "", o)
	if err != nil {
		return hsm.Secret{}, opened(err, exitFailed)
	}
	keyring, ca, err := s.Recovery(cc.Context)
	if err != nil {
		return hsm.Secret{}, opened(err, exitFailed)
	}
	defer ca.Wipe()
	return hsm.EncodeRecovery(keyring, ca), nil
}

// followRotation brings the destination the masking keys that the source has made
// since they parted, if custodians consent by giving their identities.
func (p *program) followRotation(cc *cli.Context, src, dst *cluster.Cluster) error {
	if !cc.IsSet("identity") {
		return nil
	}
	theirs, err := src.MaskingKeys(cc.Context)
	if err != nil {
		return err
	}
	ours, err := dst.MaskingKeys(cc.Context)
	if err != nil {
		return err
	}
	lacks := func(epoch uint64) bool { return !slices.Contains(ours.Common, epoch) }
	if !slices.ContainsFunc(theirs.Held, lacks) {
		return nil
	}
	o, err := p.openOptions(cc, p.progress("read"))
	if err != nil {
		return err
	}
	recovery, err := recoveryOf(cc.Context, src, o.Identities)
	if err != nil {
		return fmt.Errorf("masking keys of the source: %w", err)
	}
	defer recovery.Wipe()
	ctx, cancel := context.WithTimeout(cc.Context, 30*time.Second)
	defer cancel()
	if _, err := dst.AdoptMaskingKeys(ctx, recovery); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	fmt.Fprintln(p.err, "note: the destination took over the masking keys of the source, as custodians consented")
	return nil
}
