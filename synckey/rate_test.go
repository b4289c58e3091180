package synckey

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func TestParseRate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct{ objects, bytes float64 }{
		"500/s": {objects: 500}, "0.5/s": {objects: 0.5}, "10MB/s": {bytes: 10e6}, "1MiB/s": {bytes: 1 << 20},
		"64 KiB/s": {bytes: 64 << 10}, "3B/s": {bytes: 3}, "2.5GB/s": {bytes: 2.5e9},
	} {
		r, err := ParseRate(text)
		if err != nil || r.objects != want.objects || r.bytes != want.bytes || r.String() != text {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
	for _, text := range []string{"", "/s", "500", "10MB", "0/s", "-1/s", "NaN/s", "Inf/s", "1e308GB/s", "10 MB", "MB/s", "10Mb/s", "10MB/m", "10MB/s/s"} {
		if r, err := ParseRate(text); !errors.Is(err, hsm.ErrInvalid) || r != (Rate{}) {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
}

func rate(t testing.TB, s string) Rate {
	t.Helper()
	r, err := ParseRate(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fakeTime is a pacer's clock that moves when it sleeps.
type fakeTime struct{ now time.Time }

func (f *fakeTime) pacer(r Rate) *pacer {
	return &pacer{rate: r, now: func() time.Time { return f.now }, sleep: func(_ context.Context, d time.Duration) error {
		f.now = f.now.Add(d)
		return nil
	}}
}

// Whatever is sent, and however long the sending takes, no stretch of time has
// more than its share and one slice, and no slice is larger than a quarter of a
// second's share, or one object.
func TestPacerProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r := Rate{text: "x", bytes: rapid.Float64Range(1, 1e8).Draw(rt, "bytes a second")}
		clock := &fakeTime{now: time.Unix(1e9, 0)}
		p := clock.pacer(r)
		type sent struct {
			at    time.Time
			bytes int64
		}
		var all []sent
		for range rapid.IntRange(1, 20).Draw(rt, "slices") {
			objects, bytes := 0, int64(0)
			for last := int64(0); !r.full(objects, bytes); objects, bytes = objects+1, bytes+last {
				if objects > 0 && r.takes(objects, bytes) >= slice {
					rt.Fatalf("%d objects, %d bytes at %g bytes/s are held", objects, bytes, r.bytes)
				}
				last = rapid.Int64Range(100, 20_000).Draw(rt, "object")
			}
			if err := p.next(context.Background(), objects, bytes); err != nil {
				rt.Fatal(err)
			}
			all = append(all, sent{clock.now, bytes})
			clock.now = clock.now.Add(time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(rt, "sending")))
		}
		for i := range all {
			sum := int64(0)
			for _, s := range all[i:] {
				if may := s.at.Sub(all[i].at).Seconds()*r.bytes + 1; float64(sum) > may {
					rt.Fatalf("%d bytes within %s at %g bytes/s", sum, s.at.Sub(all[i].at), r.bytes)
				}
				sum += s.bytes
			}
		}
	})
}

// A run at a rate inserts what another does, in pieces that the rate allows, and
// reports the rate and what became durable.
func TestRate(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.a.keys(20)
	largest, inserts, pieces, was := int64(0), 0, int64(0), int64(0)
	for _, b := range p.b.boxes[:1] {
		b.onCall(func(method string) error {
			if method == "Insert" {
				inserts++
			}
			return nil
		})
	}
	o := Options{Rate: rate(t, "20/s"), Progress: func(done, total, _ int64) {
		largest, pieces, was = max(largest, done-was), total, done
	}}
	plan, err := NewPlan(t.Context(), p.src, p.dst, o)
	if err != nil {
		t.Fatal(err)
	}
	clock := &fakeTime{now: time.Unix(1e9, 0)}
	plan.pacer, plan.settle = clock.pacer(o.Rate), 0
	if err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if largest != 5 || inserts != 4 || pieces != 20 || was != 20 {
		t.Errorf("20 keys at 20/s: %d insertions, the largest of %d; %d of %d through", inserts, largest, was, pieces)
	}
	if took := clock.now.Sub(time.Unix(1e9, 0)); took != 750*time.Millisecond {
		t.Errorf("it waited %s in all, want 3/4 s: the first quarter is sent at once", took)
	}
	if err := plan.Check(t.Context()); err != nil || !equal(p.a, p.b) || plan.Result.Applied != 20 {
		t.Errorf("%v, %+v", err, plan.Result)
	}
	var doc struct{ Rate string }
	if b, err := json.Marshal(plan.Result); err != nil || json.Unmarshal(b, &doc) != nil || doc.Rate != "20/s" {
		t.Errorf("the report says %q, %v", doc.Rate, err)
	}
}

// A pause ends with the context, and what was inserted stays.
func TestRateCancelled(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.a.keys(3)
	ctx, cancel := context.WithCancel(t.Context())
	o := Options{Rate: rate(t, "0.00001/s"), Progress: func(int64, int64, int64) { cancel() }}
	r, err := run(ctx, p.src, p.dst, o)
	if !errors.Is(err, context.Canceled) || r.Applied != 1 {
		t.Fatalf("%v, %+v", err, r)
	}
	if r := p.run(t, Options{}); r.Applied != 2 || !r.RootsEqual {
		t.Errorf("the run after it: %+v", r)
	}
}
