package synckey

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// watched is a watch that runs, and what it says.
type watched struct {
	*Watch
	t    testing.TB
	stop context.CancelFunc
	end  chan error

	mu   sync.Mutex
	said []Event
}

func watch(t testing.TB, src, dst *cluster.Cluster, o WatchOptions) *watched {
	t.Helper()
	w := &watched{t: t, end: make(chan error, 1)}
	o.Event = func(e Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.said = append(w.said, e)
	}
	if o.Interval == 0 {
		o.Interval = 2 * time.Millisecond
	}
	w.Watch = NewWatch(src, dst, o)
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.end <- w.Run(ctx) }()
	t.Cleanup(cancel)
	return w
}

func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// finish ends the watch and checks that it ends well.
func (w *watched) finish() {
	w.t.Helper()
	w.stop()
	if err := <-w.end; err != nil {
		w.t.Errorf("told to end, it ended with %v", err)
	}
}

func (w *watched) times(kind EventKind) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.said {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func (w *watched) last(kind EventKind) Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range slices.Backward(w.said) {
		if e.Kind == kind {
			return e
		}
	}
	w.t.Fatalf("no event %s in %v", kind, w.said)
	return Event{}
}

// counted counts the questions to all HSMs of some regions.
func counted(regions ...*region) (count func(method string) int, reset func()) {
	var mu sync.Mutex
	calls := map[string]int{}
	for _, r := range regions {
		for _, b := range r.boxes {
			b.onCall(func(method string) error {
				mu.Lock()
				defer mu.Unlock()
				calls[method]++
				calls[""]++
				return nil
			})
		}
	}
	return func(method string) int { mu.Lock(); defer mu.Unlock(); return calls[method] },
		func() { mu.Lock(); defer mu.Unlock(); clear(calls) }
}

// While all is equal a look is one question to each HSM. A difference that is
// not to be applied is looked into once.
func TestWatchQuiet(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	count, reset := counted(p.a, p.b)
	w := NewWatch(p.src, p.dst, WatchOptions{})
	looks := func(n int) {
		t.Helper()
		for range n {
			err := w.look(t.Context())
			if w.note(err); err != nil {
				t.Fatal(err)
			}
		}
	}
	looks(1)
	reset()
	looks(10)
	if count("") != 40 || count("Root") != 40 {
		t.Errorf("10 looks at 2 + 2 equal HSMs ask %d questions, %d for roots", count(""), count("Root"))
	}
	ref := p.a.keys(1)[0]
	looks(2)
	p.a.destroy("alice", ref)
	looks(1) // learns that nothing is to be done
	reset()
	looks(10)
	if count("") != 40 || count("Root") != 40 {
		t.Errorf("10 looks at a difference that stays ask %d questions, %d for roots", count(""), count("Root"))
	}
	if st := w.Status(); st.Level || st.Left != 1 || st.Differences["destroyed at source"] != 1 || st.Applied != 1 || st.Failures != 0 || st.Looks != 24 || st.Plans != 2 {
		t.Errorf("%+v", st)
	}
	p.b.destroy("alice", ref)
	p.a.keys(1)
	looks(2)
	if n, shown := w.Status().Differences["destroyed at source"]; n != 0 || !shown {
		t.Errorf("of a class that does not occur it shows %d, %t", n, shown)
	}
	if st := w.Status(); !st.Level || st.Left != 0 || st.Applied < 2 || !equal(p.a, p.b) {
		t.Errorf("in the end: %+v", st)
	}
}

// A watch brings over whatever comes up, and says each thing once.
func TestWatch(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := watch(t, p.src, p.dst, WatchOptions{Options: Options{Both: true, Destroyed: true, Users: true}})
	until(t, "level", func() bool { return w.times(EventLevel) == 1 })
	here, there := p.a.keys(3), p.b.keys(2)
	until(t, "new keys", func() bool { return equal(p.a, p.b) })
	p.a.user("carol")
	p.a.setLabel(there[0], "changed here")
	p.b.destroy("alice", here[0])
	until(t, "a user, a change and a destruction", func() bool {
		return equal(p.a, p.b) && p.a.get(0, here[0]).Tombstone && w.Status().Level
	})
	w.finish()
	st := w.Status()
	if st.Applied < 8 || st.Failures != 0 || st.LagP50 <= 0 || st.LagP99 < st.LagP50 || st.LagMax < st.LagP99 || st.Behind != 0 {
		t.Errorf("%+v", st)
	}
	if e := w.last(EventApplied); e.Lag <= 0 || e.Result.Applied == 0 {
		t.Errorf("%+v", e)
	}
	if n := w.times(EventFailed) + w.times(EventLeft) + w.times(EventAway); n != 0 {
		t.Errorf("it says %d other things: %v", n, w.said)
	}
}

// HSMs of either side go and come back, answers get lost, and a whole side goes:
// the watch goes on, says so once, and ends up with equal roots.
func TestWatchOutages(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := watch(t, p.src, p.dst, WatchOptions{})
	for i, down := range [][]*box{{p.a.boxes[0]}, {p.b.boxes[1]}, p.a.boxes, p.b.boxes} {
		until(t, "level", func() bool { return w.Status().Level })
		for _, b := range down {
			b.down.Store(true)
		}
		failed := w.times(EventFailed)
		p.a.keys(2)
		switch len(down) {
		case 1:
			until(t, "an HSM away", func() bool { return w.times(EventAway) > 0 && w.Status().Applied >= 2*(i+1) })
		default:
			until(t, "a failure", func() bool { return w.Status().Failing != nil && w.times(EventFailed) > failed })
		}
		p.a.heal()
		p.b.heal()
		p.a.sync()
		p.b.sync()
		until(t, fmt.Sprintf("equal roots after outage %d", i), func() bool { return equal(p.a, p.b) && w.Status().Level })
	}
	w.finish()
	if w.times(EventRecovered) == 0 || w.times(EventFailed) > 20 {
		t.Errorf("%d failures told, %d recoveries", w.times(EventFailed), w.times(EventRecovered))
	}
}

// Cut at any question, before or after it was answered: the next look does the
// rest, and nothing is doubled.
func TestWatchCut(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{false, true} {
		for nth := 1; nth <= 12; nth++ {
			p := newPair(t)
			p.a.keys(3)
			w := NewWatch(p.src, p.dst, WatchOptions{})
			var n atomic.Int64
			cut := func(string) error {
				if n.Add(1) == int64(nth) {
					return fmt.Errorf("%w: cut", hsm.ErrUnavailable)
				}
				return nil
			}
			for _, b := range slices.Concat(p.a.boxes, p.b.boxes) {
				if lost {
					b.onAnswer(cut)
				} else {
					b.onCall(cut)
				}
			}
			w.note(w.look(t.Context()))
			p.a.heal()
			p.b.heal()
			until(t, "equal roots", func() bool {
				w.note(w.look(t.Context()))
				return equal(p.a, p.b)
			})
			if st := w.Status(); st.Applied > 6 {
				t.Errorf("cut %d: 3 keys on 2 HSMs, %d applied", nth, st.Applied)
			}
		}
	}
}

// Watches that are ended at any time and started again, two at a time, bring
// over all that comes up meanwhile.
func TestWatchRestarted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	second := watch(t, p.a.open(appliance), p.b.open(appliance), WatchOptions{})
	for range 10 {
		w := watch(t, p.a.open(appliance), p.b.open(appliance), WatchOptions{})
		p.a.keys(3)
		w.finish() // wherever it is
	}
	until(t, "equal roots", func() bool { return equal(p.a, p.b) && second.Status().Level })
	second.finish()
}

// Strangers and those without rights end a watch at once; so does what is refused
// later on.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	stranger := newRegion(t, 1)
	for _, c := range []struct {
		src, dst *cluster.Cluster
		o        WatchOptions
		want     error
	}{
		{p.src, stranger.open(appliance), WatchOptions{}, hsm.ErrLineage},
		{p.src, p.src, WatchOptions{}, hsm.ErrInvalid},
		{p.a.open("alice"), p.b.open("bob"), WatchOptions{}, hsm.ErrDenied},
		{p.src, p.dst, WatchOptions{Interval: -1}, hsm.ErrInvalid},
	} {
		if err := <-watch(t, c.src, c.dst, c.o).end; !errors.Is(err, c.want) {
			t.Errorf("%v, want %v", err, c.want)
		}
	}
	w := watch(t, p.src, p.dst, WatchOptions{})
	until(t, "level", func() bool { return w.Status().Level })
	p.b.boxes[0].onCall(func(method string) error {
		if method == "Root" {
			return fmt.Errorf("%w: of another", hsm.ErrLineage)
		}
		return nil
	})
	if err := <-w.end; !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("%v", err)
	}
}

// A plan beyond a limit ends the watch, or with Patient is held back, not tried
// again and again, until it is within the limit.
func TestWatchRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	o := WatchOptions{Options: Options{MaxChanges: AtMost(2)}}
	p.a.keys(3)
	if err := <-watch(t, p.src, p.dst, o).end; !errors.Is(err, ErrLimit) || equal(p.a, p.b) {
		t.Fatalf("%v", err)
	}
	o.Patient = true
	count, reset := counted(p.a, p.b)
	w := NewWatch(p.src, p.dst, o)
	err := w.look(t.Context())
	w.note(err)
	if !errors.Is(err, ErrLimit) || w.ends(err, true) {
		t.Fatalf("%v", err)
	}
	reset()
	for range 5 {
		err := w.look(t.Context())
		if w.note(err); !errors.Is(err, ErrLimit) {
			t.Fatal(err)
		}
	}
	if st := w.Status(); count("") != count("Root") || st.Refusals != 6 || st.Failures != 0 || st.Applied != 0 || w.wait() < 15*time.Second {
		t.Errorf("%d questions, %d for roots; %+v, waits %s", count(""), count("Root"), st, w.wait())
	}
	if r := p.run(t, Options{}); r.Applied != 3 { // a person has looked
		t.Errorf("%+v", r)
	}
	p.a.keys(2)
	if err := w.look(t.Context()); err != nil || !equal(p.a, p.b) {
		t.Errorf("%v, %+v", err, w.Status())
	}
}

// A crypto user watches its own keys; a login of one side sees more.
func TestWatchCryptoUser(t *testing.T) {
	t.Parallel()
	for _, src := range []string{"alice", appliance} {
		p := newPair(t)
		count, reset := counted(p.a, p.b)
		w := NewWatch(p.a.open(src), p.b.open("alice"), WatchOptions{})
		p.a.key("bob", "not hers")
		ref := p.a.keys(1)[0]
		for range 3 {
			err := w.look(t.Context())
			if w.note(err); err != nil {
				t.Fatal(err)
			}
		}
		if got := p.b.get(0, ref); len(got.Bytes) == 0 || !w.Status().Level || w.Status().Applied != 1 {
			t.Errorf("%q: %+v", src, w.Status())
		}
		reset()
		err := w.look(t.Context())
		if err != nil || count("") != count("Root") {
			t.Errorf("%q: %v; %d questions, %d for roots, though nothing has changed", src, err, count(""), count("Root"))
		}
	}
}

// The waits grow while looks fail, to a bound, and are short again after a success.
func TestWatchBacksOff(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := NewWatch(p.src, p.dst, WatchOptions{Interval: time.Second})
	last := time.Duration(0)
	for n := 1; n <= 30; n++ {
		w.note(fmt.Errorf("%w: away", hsm.ErrUnavailable))
		want := min(time.Second<<min(n-1, 10), maxWait)
		if got := w.wait(); got < want*94/100 || got > want*106/100 {
			t.Errorf("after %d failures it waits %s, want about %s", n, got, want)
		}
		last = w.wait()
	}
	w.note(nil)
	if got := w.wait(); last < maxWait*9/10 || got > 1100*time.Millisecond {
		t.Errorf("at last %s, then %s", last, got)
	}
}

func TestLags(t *testing.T) {
	t.Parallel()
	var l lags
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	object := func(refs ...hsm.KeyRef) (out []hsm.MaskedObject) {
		for _, r := range refs {
			out = append(out, hsm.MaskedObject{Object: hsm.Object{Ref: r}})
		}
		return out
	}
	l.see(slices.Values([]hsm.KeyRef{1, 2, 3}), at(10))
	l.see(slices.Values([]hsm.KeyRef{2, 3, 4}), at(20)) // 1 is to be applied no more
	if d := l.behind(at(25)); d != 15*time.Second {
		t.Errorf("behind %s", d)
	}
	if d := l.applied(object(2, 4, 4, 1), at(26)); d != 16*time.Second {
		t.Errorf("longest %s", d)
	}
	if q := l.quantiles(0, .5, 1); q[0] != 6*time.Second || q[1] != 16*time.Second || q[2] != 16*time.Second {
		t.Errorf("%v", q)
	}
	if l.none(); l.behind(at(99)) != 0 {
		t.Error("nothing waits")
	}
	many := func(yield func(hsm.KeyRef) bool) {
		for i := range maxAwaited + 10 {
			if !yield(hsm.KeyRef(i + 1)) {
				return
			}
		}
	}
	l.see(many, at(30))
	l.see(many, at(40))
	if d := l.behind(at(41)); len(l.awaited) != maxAwaited || d != 11*time.Second {
		t.Errorf("%d awaited, behind %s", len(l.awaited), d)
	}
	var all []hsm.KeyRef
	many(func(r hsm.KeyRef) bool { all = append(all, r); return true })
	if d := l.applied(object(all...), at(42)); d != 12*time.Second || len(l.recent) != maxLags {
		t.Errorf("longest %s, %d lags kept", d, len(l.recent))
	}
}

// What is said of failures is said once.
func TestWatchTellsOnce(t *testing.T) {
	t.Parallel()
	var said []string
	tell := teller{tell: func(e Event) { said = append(said, string(e.Kind)) }}
	wait := func() time.Duration { return time.Second }
	left := &Result{Left: []Left{{Ref: 1, Reason: "x"}}}
	for range 3 {
		tell.ended(fmt.Errorf("at 10.0.0.1: %w", hsm.ErrUnavailable), wait)
		tell.ended(fmt.Errorf("at 10.0.0.2: %w", hsm.ErrUnavailable), wait)
	}
	tell.ended(ErrLimit, wait)
	tell.ended(ErrLimit, wait)
	tell.ended(nil, wait)
	tell.ended(nil, wait)
	tell.left(left)
	tell.left(left)
	tell.left(&Result{})
	tell.left(left)
	if got := strings.Join(said, " "); got != "failed refused recovered left left" {
		t.Errorf("it says %s", got)
	}
}
