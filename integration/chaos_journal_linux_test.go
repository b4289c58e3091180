package integration

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/integration/history"
)

// journal is what all callers did.
type journal struct {
	mu      sync.Mutex
	open    map[string]history.Operation // asked and not answered, by process and id
	done    []history.Operation
	refs    map[string]hsm.KeyRef // by label
	used    map[string]string     // what each key made of its label
	wrong   []string
	why     map[string]string // an example for each kind of failure
	known   []knownKey
	listen  map[string]func(knownKey) // other processes
	faults  map[string]int
	unclean int64 // when an operation last ended so that something may be provisional
}

func newJournal() *journal {
	return &journal{
		open: map[string]history.Operation{}, refs: map[string]hsm.KeyRef{}, used: map[string]string{}, why: map[string]string{},
		listen: map[string]func(knownKey){}, faults: map[string]int{},
	}
}

// note takes an event of a process.
func (j *journal) note(process string, e event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	id := fmt.Sprint(process, "/", e.ID)
	if !e.Answered {
		j.open[id] = e.Operation
		return
	}
	delete(j.open, id)
	j.done = append(j.done, e.Operation)
	if e.Why != "" {
		j.why[string(e.Kind)+": "+string(e.Result)] = e.Why
	}
	if e.Kind == history.Create && e.Result != history.OK {
		j.unclean = max(j.unclean, e.Return)
	}
	if e.Ref != 0 {
		j.tell(process, knownKey{e.Key, e.Ref})
	}
	if e.Used != "" {
		if was := j.used[e.Key]; was != "" && was != e.Used {
			j.wrong = append(j.wrong, fmt.Sprintf("key %s answered %s and then %s", e.Key, was, e.Used))
		}
		j.used[e.Key] = e.Used
	}
}

// tell tells all processes but the one it comes from of a key. j.mu is held.
func (j *journal) tell(process string, k knownKey) {
	if j.refs[k.Label] != 0 {
		return
	}
	j.refs[k.Label] = k.Ref
	j.known = append(j.known, k)
	for other, listen := range j.listen {
		if other != process {
			listen(k)
		}
	}
}

// join has a process told of new keys, and returns those known so far.
func (j *journal) join(process string, listen func(knownKey)) []knownKey {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.listen[process] = listen
	return slices.Clone(j.known)
}

// leave ends that. What the process was about is unknown for ever.
func (j *journal) leave(process string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.listen, process)
	for id := range j.open {
		if strings.HasPrefix(id, process+"/") {
			j.unclean = max(j.unclean, monotonic())
		}
	}
}

func (j *journal) fault(kind string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.faults[kind]++
}

// provisionalUntil is when the last provisional key of a caller is given up.
func (j *journal) provisionalUntil() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.unclean == 0 {
		return 0
	}
	return j.unclean + int64(callerLease+2*time.Second)
}

// history returns all operations, those without an answer included.
func (j *journal) history() []history.Operation {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append(slices.Clone(j.done), slices.Collect(maps.Values(j.open))...)
}

// labels lists the labels of all keys anybody tried to make.
func (j *journal) labels() []string {
	labels := map[string]bool{}
	for _, op := range j.history() {
		labels[op.Key] = true
	}
	return slices.Sorted(maps.Keys(labels))
}

// summary tells what happened.
func (j *journal) summary(t testing.TB) {
	t.Helper()
	counts := map[string]int{}
	for _, op := range j.history() {
		counts[fmt.Sprintf("%s: %s", op.Kind, op.Result)]++
		if op.Residue {
			counts[fmt.Sprintf("%s: %s, with residue", op.Kind, op.Result)]++
		}
	}
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%6d %s", counts[k], k)
	}
	for _, k := range slices.Sorted(maps.Keys(j.faults)) {
		t.Logf("%6d faults: %s", j.faults[k], k)
	}
	for _, k := range slices.Sorted(maps.Keys(j.why)) {
		t.Logf("for example %s: %s", k, j.why[k])
	}
	total, longest := j.unavailable()
	t.Logf("unavailable for %.1f s (a second or more without any success), at most %.1f s at once", total.Seconds(), longest.Seconds())
}

// unavailable adds up the times in which nothing succeeded for a second or more,
// until the cluster has settled.
func (j *journal) unavailable() (total, longest time.Duration) {
	ops := j.history()
	slices.SortFunc(ops, func(a, b history.Operation) int { return cmp.Compare(a.Return, b.Return) })
	last := int64(0)
	for _, op := range ops {
		if op.Kind == history.Settled {
			break
		}
		if op.Result != history.OK || op.Return == history.Never {
			continue
		}
		if gap := time.Duration(op.Return - last); last > 0 && gap >= time.Second {
			total += gap
			longest = max(longest, gap)
		}
		last = op.Return
	}
	return total, longest
}
