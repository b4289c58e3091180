package history

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Kind is what was asked for.
type Kind string

// The kinds of operations.
const (
	Create  Kind = "create"
	Use     Kind = "use"
	Destroy Kind = "destroy"
	// Settled is not of one key but of all: see Recorder.Settled.
	Settled Kind = "settled"
)

// Outcome is what an answer says for sure.
type Outcome string

// The outcomes.
const (
	// OK: acknowledged; a use worked.
	OK Outcome = "ok"
	// NotFound: there is no such key.
	NotFound Outcome = "not found"
	// WasDestroyed: the key is known to be destroyed.
	WasDestroyed Outcome = "destroyed"
	// Nothing: refused, and for sure nothing was done or is left. It says nothing
	// about the key: too few HSMs, none reachable, …
	Nothing Outcome = "nothing done"
	// Unknown: it may have been done, or may be done later, or never.
	Unknown Outcome = "unknown"
)

// Never is the Return of an operation that was never answered.
const Never = math.MaxInt64

// Operation is one line of a history. Times are of one clock for all clients;
// they need an order only.
type Operation struct {
	Client int     `json:"client"`
	Kind   Kind    `json:"kind"`
	Key    string  `json:"key,omitempty"` // the caller's name for it, one per creation
	Invoke int64   `json:"invoke"`
	Return int64   `json:"return"` // Never without an answer
	Result Outcome `json:"result"`
	// Residue: HSMs could not be told. Until the cluster has settled they may
	// answer as if the destruction had not been, or as if the failed creation had.
	Residue bool `json:"residue,omitempty"`
}

// String prints one line.
func (o Operation) String() string {
	answered := fmt.Sprint(o.Return)
	if o.Return == Never {
		answered = "never"
	}
	s := fmt.Sprintf("client %d %s %s [%d, %s]: %s", o.Client, o.Kind, o.Key, o.Invoke, answered, o.Result)
	if o.Residue {
		s += ", with residue"
	}
	return s
}

// Recorder collects a history. It is safe for concurrent use.
type Recorder struct {
	clock func() int64

	mu  sync.Mutex
	ops []*Operation
}

// NewRecorder returns a Recorder that takes the time from clock; nil is time
// since now, in nanoseconds. Clients in several processes need one clock.
func NewRecorder(clock func() int64) *Recorder {
	if clock == nil {
		began := time.Now()
		clock = func() int64 { return int64(time.Since(began)) }
	}
	return &Recorder{clock: clock}
}

// Call is an operation under way.
type Call struct {
	r  *Recorder
	op *Operation
}

// Invoke notes that a client is about to ask. Until Return the outcome is Unknown.
func (r *Recorder) Invoke(client int, kind Kind, key string) Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	op := &Operation{Client: client, Kind: kind, Key: key, Invoke: r.clock(), Return: Never, Result: Unknown}
	r.ops = append(r.ops, op)
	return Call{r, op}
}

// Return notes the answer.
func (c Call) Return(result Outcome, residue bool) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.op.Return, c.op.Result, c.op.Residue = c.r.clock(), result, residue
}

// Settled notes that all HSMs hold the same, have nothing in doubt, and that no
// operation is under way, be it one whose client is gone.
func (r *Recorder) Settled() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock()
	r.ops = append(r.ops, &Operation{Kind: Settled, Invoke: now, Return: now, Result: OK})
}

// Add appends operations recorded elsewhere, by the same clock.
func (r *Recorder) Add(ops ...Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		r.ops = append(r.ops, &op)
	}
}

// History returns what was recorded so far, by the time of asking.
func (r *Recorder) History() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Operation, len(r.ops))
	for i, op := range r.ops {
		out[i] = *op
	}
	slices.SortStableFunc(out, func(a, b Operation) int { return int(min(max(a.Invoke-b.Invoke, -1), 1)) })
	return out
}
