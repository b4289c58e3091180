package synckey

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// link is how long every question to an HSM takes over the network of figures.
const link = 80 * time.Millisecond

// faraway puts 80 ms between the client and the HSMs of the regions.
func faraway(regions ...*region) {
	for _, r := range regions {
		for _, b := range r.boxes {
			b.onCall(func(string) error { time.Sleep(link); return nil })
		}
	}
}

// BenchmarkFigureRun: a whole run over a link of 80 ms to both clusters, from the
// proof of the lineage to equal roots, for d new keys among 10,000. trips is the
// time in round trips; x-objects is what was sent, sketch and masked objects,
// beside the masked objects of the new keys as they lie in the source.
func BenchmarkFigureRun(b *testing.B) {
	for _, d := range []int{0, 1, 100, 10_000} {
		b.Run(fmt.Sprintf("differences=%d", d), func(b *testing.B) {
			east := newRegion(b, 1)
			east.keys(10_000)
			west := east.clone(1)
			src, dst := east.open(appliance), west.open(appliance)
			sent, moved, sketch := int64(0), int64(0), int64(0)
			for b.Loop() {
				b.StopTimer()
				east.heal()
				west.heal()
				for _, ref := range east.keys(d) {
					moved += int64(len(east.get(0, ref).Bytes))
				}
				faraway(east, west)
				b.StartTimer()
				r, err := run(context.Background(), src, dst, Options{})
				if err != nil || !r.RootsEqual || r.Applied != d {
					b.Fatalf("%v, %+v", err, r)
				}
				sent, sketch = sent+r.ObjectBytes, sketch+r.SketchBytes
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/link.Seconds(), "trips")
			if d > 0 {
				b.ReportMetric(float64(sent)/float64(moved), "x-objects")
				b.ReportMetric(float64(sent+sketch)/float64(moved), "x-objects-and-sketch")
				b.ReportMetric(float64(sketch)/float64(b.N)/float64(d), "sketch-B/diff")
			}
		})
	}
}

// BenchmarkFigureLag: a watch over a link of 80 ms to both clusters, with looks
// each second, while a key is made each 100 ms: lag from the first sight of a key
// until it is durable, and delay from when it was there, which has the wait for
// the next look in it.
func BenchmarkFigureLag(b *testing.B) {
	east := newRegion(b, 1)
	east.keys(10_000)
	west := east.clone(1)
	src, dst := east.open(appliance), west.open(appliance)
	faraway(east, west)
	var mu sync.Mutex
	made, delays := map[hsm.KeyRef]time.Time{}, []time.Duration{}
	w := NewWatch(src, dst, WatchOptions{Event: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Kind == EventApplied {
			for _, d := range e.Result.Details {
				delays = append(delays, time.Since(made[d.Ref]))
			}
		}
	}})
	ctx, cancel := context.WithCancel(b.Context())
	end := make(chan error, 1)
	go func() { end <- w.Run(ctx) }()
	n := 0
	for b.Loop() {
		for range 100 {
			m := east.birth(hsm.NewKeyRef(), "alice", "lag")
			mu.Lock()
			made[m.Ref] = time.Now()
			mu.Unlock()
			east.put([]hsm.MaskedObject{m})
			time.Sleep(100 * time.Millisecond)
			n++
		}
	}
	until(b, "all keys", func() bool { return w.Status().Applied == n && w.Status().Level })
	cancel()
	if err := <-end; err != nil {
		b.Fatal(err)
	}
	st := w.Status()
	slices.Sort(delays)
	b.ReportMetric(float64(st.LagP50), "lag-p50-s")
	b.ReportMetric(float64(st.LagP99), "lag-p99-s")
	b.ReportMetric(delays[len(delays)/2].Seconds(), "delay-p50-s")
	b.ReportMetric(delays[len(delays)*99/100].Seconds(), "delay-p99-s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFigureQuiet: what a look costs the client in CPU time while nothing
// has changed; it asks 2 HSMs of 10,000 keys each for their roots.
func BenchmarkFigureQuiet(b *testing.B) {
	east := newRegion(b, 1)
	east.keys(10_000)
	west := east.clone(1)
	w := NewWatch(east.open(appliance), west.open(appliance), WatchOptions{})
	for b.Loop() {
		if err := w.look(b.Context()); err != nil || !w.Status().Level {
			b.Fatal(err)
		}
	}
}
