package history

import (
	"slices"

	"github.com/anishathalye/porcupine"
)

// state is what a key may be at one moment.
type state string

const (
	absent    state = "absent"    // never created
	appearing state = "appearing" // its creation will be acknowledged; some HSMs show it
	live      state = "live"      // acknowledged: no HSM denies it
	open      state = "open"      // an unknown outcome: there or not, any answer
	going     state = "going"     // destroyed; HSMs not told yet show it
	gone      state = "gone"      // destroyed, or never to be
)

// step is a moment of an operation, to be found between its question and its
// answer. Most operations are not done everywhere at once, and so have two.
type step string

const (
	show       step = "show"        // a creation begins to be visible
	acked      step = "acked"       // a creation is done
	mayShow    step = "may show"    // a creation of unknown outcome
	vanish     step = "vanish"      // a failed creation is undone, but for what residue says
	vanished   step = "vanished"    // a failed creation has left nothing
	hide       step = "hide"        // a destruction begins
	hidden     step = "hidden"      // a destruction is done everywhere
	mayHide    step = "may hide"    // a destruction of unknown outcome
	sawOK      step = "works"       // an answer
	sawNone    step = "not found"   // an answer
	sawDestroy step = "destroyed"   // an answer
	settle     step = "all settled" // everything is decided
)

// moves says, for each step, which states it leads to from which. A state that
// is not listed cannot be one in which the step happens.
var moves = map[step]map[state][]state{
	show:    {absent: {appearing}},
	acked:   {appearing: {live}, open: {open}, going: {going}, gone: {gone}},
	mayShow: {absent: {open}, appearing: {open}, live: {live}, open: {open}, going: {going}, gone: {gone}},

	vanish:   {absent: {going}, open: {going}, going: {going}, gone: {gone}},
	vanished: {absent: {gone}, open: {gone}, going: {gone}, gone: {gone}},

	hide:    {appearing: {going}, live: {going}, open: {going}, going: {going}, gone: {gone}},
	hidden:  {going: {gone}, gone: {gone}},
	mayHide: {absent: {absent}, appearing: {open}, live: {open}, open: {open}, going: {going}, gone: {gone}},

	sawOK:      {appearing: {appearing}, live: {live}, open: {open}, going: {going}},
	sawNone:    {absent: {absent}, appearing: {appearing}, open: {open}, going: {going}, gone: {gone}},
	sawDestroy: {open: {going}, going: {going}, gone: {gone}},

	settle: {absent: {absent}, appearing: {appearing}, live: {live}, open: {live, gone}, going: {gone}, gone: {gone}},
}

// steps returns the moments of an operation and for each whether it may come
// after the answer.
func (o Operation) steps() (within, later []step) {
	switch {
	case o.Kind == Settled:
		return []step{settle}, nil
	case o.Kind == Create && o.Result == OK:
		return []step{show, acked}, nil
	case o.Kind == Create && o.Result == Nothing && o.Residue:
		return []step{vanish}, nil
	case o.Kind == Create && o.Result == Nothing:
		return []step{mayShow, vanished}, nil
	case o.Kind == Create:
		return nil, []step{mayShow}
	case o.Kind == Destroy && o.Result == OK && o.Residue:
		return []step{hide}, nil
	case o.Kind == Destroy && o.Result == OK:
		return []step{hide, hidden}, nil
	case o.Kind == Destroy && o.Result == Unknown:
		return nil, []step{mayHide}
	}
	return o.evidence()
}

// evidence is of answers about the key. A destruction that is answered so may
// have been done by an HSM that did not come to say it, before another was asked.
func (o Operation) evidence() (within, later []step) {
	if o.Kind == Destroy && o.Result != Nothing {
		later = []step{mayHide}
	}
	switch {
	case o.Result == OK:
		within = []step{sawOK}
	case o.Result == NotFound:
		within = []step{sawNone}
	case o.Result == WasDestroyed:
		within = []step{sawDestroy}
	}
	return within, later
}

// input is what porcupine calls an input: a step, and the operation it is of.
type input struct {
	step step
	op   int // index into the key's history
}

// model is the behaviour of one key.
var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{absent} },
	Step: func(s, in, _ any) []any {
		next := moves[in.(input).step][s.(state)]
		out := make([]any, len(next))
		for i, n := range next {
			out[i] = n
		}
		return out
	},
	DescribeOperation: func(in, _ any) string { return string(in.(input).step) },
	DescribeState:     func(s any) string { return string(s.(state)) },
}).ToModel()

// toPorcupine turns the history of one key into operations of the model. An
// operation of unknown outcome takes effect before the cluster settles, or never.
func toPorcupine(history []Operation) []porcupine.Operation {
	var out []porcupine.Operation
	for i, op := range history {
		within, later := op.steps()
		for _, s := range within {
			out = append(out, porcupine.Operation{ClientId: op.Client, Input: input{s, i}, Call: op.Invoke, Return: op.Return})
		}
		for _, s := range later {
			out = append(out, porcupine.Operation{ClientId: op.Client, Input: input{s, i}, Call: op.Invoke, Return: settledAfter(history, op)})
		}
	}
	return out
}

// settledAfter returns the last moment before the cluster next settled.
func settledAfter(history []Operation, op Operation) int64 {
	end := int64(Never)
	for s := range slices.Values(history) {
		if s.Kind == Settled && s.Invoke > op.Invoke {
			end = min(end, s.Invoke-1)
		}
	}
	return end
}
