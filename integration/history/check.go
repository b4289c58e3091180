package history

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// patience bounds the search for one key. Histories of one key are short.
const patience = time.Minute

// Violation is a key whose history cannot have happened.
type Violation struct {
	Key string
	// Undecided: no order was found in the time there was. It is a violation as
	// far as tests are concerned.
	Undecided bool
	History   []Operation
	// Stuck are the operations that come too late in the longest order that was
	// found: one of them breaks a promise.
	Stuck []Operation

	info porcupine.LinearizationInfo
}

// Error tells the key's whole history, and marks what does not fit.
func (v Violation) Error() string {
	var b strings.Builder
	what := "no order of these operations is possible"
	if v.Undecided {
		what = "no order of these operations was found in time"
	}
	fmt.Fprintf(&b, "key %s: %s", v.Key, what)
	for _, op := range v.History {
		mark := "  "
		if slices.Contains(v.Stuck, op) {
			mark = "! "
		}
		b.WriteString("\n" + mark + op.String())
	}
	return b.String()
}

// Visualize writes an HTML page that draws the key's history.
func (v Violation) Visualize(w io.Writer) error { return porcupine.Visualize(model, v.info, w) }

// Check returns the keys whose histories cannot have happened, by name; none if
// the promises of the package comment were kept.
func Check(history []Operation) []Violation {
	var settled []Operation
	keys := map[string][]Operation{}
	for _, op := range history {
		if op.Kind == Settled {
			settled = append(settled, op)
			continue
		}
		keys[op.Key] = append(keys[op.Key], op)
	}
	var out []Violation
	for key, ops := range keys {
		if v, bad := checkKey(key, append(ops, settled...)); bad {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b Violation) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func checkKey(key string, ops []Operation) (Violation, bool) {
	slices.SortStableFunc(ops, func(a, b Operation) int { return int(min(max(a.Invoke-b.Invoke, -1), 1)) })
	result, info := porcupine.CheckOperationsVerbose(model, toPorcupine(ops), patience)
	if result == porcupine.Ok {
		return Violation{}, false
	}
	v := Violation{Key: key, Undecided: result == porcupine.Unknown, History: ops, info: info}
	placed := longest(info)
	for i, op := range ops {
		within, later := op.steps()
		if len(within)+len(later) > placed[i] {
			v.Stuck = append(v.Stuck, op)
		}
	}
	return v, true
}

// longest counts, by operation, the steps placed in the longest order found.
func longest(info porcupine.LinearizationInfo) map[int]int {
	var best []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(best) {
				best = order
			}
		}
	}
	placed := map[int]int{}
	for _, op := range best {
		placed[op.Input.(input).op]++
	}
	return placed
}
