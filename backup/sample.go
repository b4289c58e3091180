package backup

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Sample is a share of a snapshot's packs: those whose turn it is. Consecutive
// turns read every pack (FORMAT.md §10). The zero Sample is the whole.
type Sample struct {
	Share float64 // above 0, up to 1; 0 is all
	Turn  uint64
}

// ParseShare reads a share: "5%" or "0.05". hsm.ErrInvalid.
func ParseShare(s string) (float64, error) {
	number, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v > 0 && v <= 1) { // NaN too
		return 0, fmt.Errorf("%w: share %q: want more than 0%% and at most 100%%", hsm.ErrInvalid, s)
	}
	return v, nil
}

// TurnOf is the turn of a day: a sample each day goes through all packs.
func TurnOf(day time.Time) uint64 { return uint64(max(day.Unix(), 0) / (24 * 60 * 60)) }

// choose returns the packs whose turn it is, by name.
func (s Sample) choose(packs []format.PackEntry) map[format.Name]bool {
	n := len(packs)
	out := make(map[format.Name]bool, n)
	if n == 0 {
		return out
	}
	count := n
	if s.Share > 0 && s.Share < 1 {
		count = max(1, min(n, int(math.Ceil(s.Share*float64(n)))))
	}
	names := make([]format.Name, n)
	for i, p := range packs {
		names[i] = p.Pack
	}
	slices.SortFunc(names, func(a, b format.Name) int { return bytes.Compare(a[:], b[:]) })
	first := s.Turn % uint64(n) * uint64(count) % uint64(n) // below n², which fits
	for i := range uint64(count) {
		out[names[(first+i)%uint64(n)]] = true
	}
	return out
}

// sampled returns the layers without the objects whose current state lies in
// other packs than these.
func (c *catalog) sampled(ctx context.Context, packs map[format.Name]bool) ([]layer, error) {
	all, err := c.layers(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]layer, len(all))
	for o, at := range merged(all) {
		if packs[c.packs[at.layer].Pack] {
			out[at.layer].items = append(out[at.layer].items, o)
		}
	}
	return out, nil
}
