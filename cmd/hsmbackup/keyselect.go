package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// filterFlags select keys; words without a flag are filter terms too.
func filterFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "filter", Aliases: []string{"key-filter"}, Usage: "`TERM`: key-reference=0x…, attr.NAME=VALUE, owner=USER; all must hold"},
		&cli.StringSliceFlag{Name: "key", Usage: "key `REFERENCE`"},
		&cli.StringFlag{Name: "label", Usage: "the key's `LABEL`"},
	}
}

func filterOf(cc *cli.Context, words []string) (hsm.Filter, error) {
	terms := append(slices.Clone(cc.StringSlice("filter")), words...)
	for _, k := range cc.StringSlice("key") {
		terms = append(terms, "key-reference="+k)
	}
	f, err := hsm.ParseFilter(terms)
	if err == nil && cc.String("label") != "" {
		f.Attrs["label"] = cc.String("label")
	}
	return f, err
}

// selectKey finds the one key that the command line selects, among keys of the
// given classes if there are any.
func selectKey(ctx context.Context, c *cluster.Cluster, f hsm.Filter, classes ...hsm.Class) (cluster.Key, error) {
	if f.Empty() {
		return cluster.Key{}, usagef("no key: select one with key-reference=0x…, attr.label=… or --key REFERENCE")
	}
	if len(f.Refs) == 1 && len(f.Attrs) == 0 && f.Owner == "" {
		return keyOrPair(ctx, c, f.Refs[0], classes)
	}
	var found []cluster.Key
	for k, err := range c.Keys(ctx, f) {
		if err != nil {
			return cluster.Key{}, err
		}
		if len(classes) == 0 || slices.Contains(classes, k.Class) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return cluster.Key{}, fmt.Errorf("%w: no key matches", hsm.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return cluster.Key{}, usagef("Key selection criteria matched %d keys. Refine selection criteria to select a single key.", len(found))
}

// keyOrPair finds a key by reference. Where the verb wants the other half of a
// pair (verify with a private key's reference), it is the other half.
func keyOrPair(ctx context.Context, c *cluster.Cluster, ref hsm.KeyRef, classes []hsm.Class) (cluster.Key, error) {
	k, err := c.Key(ctx, ref)
	if err != nil || len(classes) == 0 || slices.Contains(classes, k.Class) || k.Pair == 0 {
		return k, err
	}
	return c.Key(ctx, k.Pair)
}

// selectFlag finds the key named by a flag that holds filter terms.
func selectFlag(ctx context.Context, c *cluster.Cluster, cc *cli.Context, flag string, classes ...hsm.Class) (cluster.Key, error) {
	terms := cc.StringSlice(flag)
	if len(terms) == 0 {
		return cluster.Key{}, usagef("no key: name it with --%s key-reference=0x… or --%s attr.label=…", flag, flag)
	}
	f, err := hsm.ParseFilter(terms)
	if err != nil {
		return cluster.Key{}, err
	}
	return selectKey(ctx, c, f, classes...)
}
