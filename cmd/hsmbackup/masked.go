package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// extractMaskedCommand is KMU's extractMaskedObject.
func (p *program) extractMaskedCommand() *cli.Command {
	return &cli.Command{
		Name: "extract-masked", Usage: "write a key to a file, masked: also one that is not extractable", ArgsUsage: "[FILTER…]", Action: p.extractMasked,
		Description: "Example: hsmbackup key extract-masked key-reference=0x0123456789abcdef --out key.masked --cluster ./east\n\n" +
			"Only HSMs of this cluster and its clones can open the file. It holds attributes, owner and shares too.",
		Flags: append(append(clusterFlags(), filterFlags()...), outFlag()),
	}
}

// insertMaskedCommand is KMU's insertMaskedObject.
func (p *program) insertMaskedCommand() *cli.Command {
	return &cli.Command{
		Name: "insert-masked", Usage: "make a key from a file of extract-masked", Action: p.insertMasked,
		Description: "Example: hsmbackup key insert-masked --in key.masked --cluster ./west\n\nThe key keeps its reference, attributes, owner and shares; owner and shared users must exist here.",
		Flags:       append(append(clusterFlags(), durabilityFlags()...), &cli.StringFlag{Name: "in", Usage: "`FILE` with the key; without it standard input"}),
	}
}

func (p *program) extractMasked(cc *cli.Context) error {
	path := cc.String("out")
	if path == "" {
		return usagef("where to? give --out FILE")
	}
	return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
		m, err := extractOne(ctx, c, k)
		if err != nil {
			return err
		}
		b, err := hsm.EncodeMaskedFile(m)
		if err != nil {
			return err
		}
		like, err := os.Stat(path)
		if err != nil {
			like = nil
		}
		if err := profile.WriteFile(path, b, like); err != nil {
			return fmt.Errorf("write masked key: %w", err)
		}
		doc := map[string]any{"key_reference": k.Ref, "file": path, "bytes": len(b)}
		return p.result(doc, func(w io.Writer) { fmt.Fprintf(w, "key %s was masked and written to %s\n", k.Ref, path) })
	})
}

func extractOne(ctx context.Context, c *cluster.Cluster, k cluster.Key) (hsm.MaskedObject, error) {
	if !k.Token {
		return hsm.MaskedObject{}, fmt.Errorf("%w: key %s is a session key; it stays on its HSM", hsm.ErrAttribute, k.Ref)
	}
	for m, err := range c.Extract(ctx, slices.Values([]hsm.KeyRef{k.Ref})) {
		return m, err
	}
	return hsm.MaskedObject{}, fmt.Errorf("%w: key %s: a key is extracted by its owner, an admin or an appliance", hsm.ErrDenied, k.Ref)
}

func (p *program) insertMasked(cc *cli.Context) error {
	policy, err := callPolicy(cc)
	if err != nil {
		return err
	}
	b, err := p.readInput(cc.String("in"))
	if err != nil {
		return err
	}
	m, err := hsm.ParseMaskedFile(b)
	if err != nil {
		return err
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		made, err := c.Create(ctx, hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: []hsm.MaskedObject{m}}, policy)
		if err != nil {
			return err
		}
		v := p.viewMade(ctx, c, made.Keys[0])
		return p.result(v, v.print)
	})
}
