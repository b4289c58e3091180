package synckey

import (
	"context"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// BenchmarkRun brings 100 new keys over to a clone, among 10,000 that both have:
// plan, insertion, check. object-B/key is what the masked objects themselves take,
// which no protocol can avoid; an item is 24 bytes.
func BenchmarkRun(b *testing.B) {
	const shared, differ = 10_000, 100
	east := newRegion(b, 1)
	east.keys(shared)
	west := east.clone(1)
	src, dst := east.open(appliance), west.open(appliance)
	var sketch, objects, trips float64
	for b.Loop() {
		b.StopTimer()
		east.keys(differ)
		b.StartTimer()
		r, err := run(context.Background(), src, dst, Options{})
		if err != nil || !r.RootsEqual || r.Applied != differ {
			b.Fatalf("%v, %+v", err, r)
		}
		sketch += float64(r.SketchBytes)
		objects += float64(r.ObjectBytes)
		trips += float64(r.RoundTrips)
	}
	n := float64(b.N)
	b.ReportMetric(sketch/n/differ, "sketch-B/diff")
	b.ReportMetric(sketch/n/differ/reconcile.CellBytes, "cells/diff")
	b.ReportMetric(objects/n/differ, "object-B/key")
	b.ReportMetric(trips/n, "round-trips")
}

// BenchmarkEqual looks at two equal clusters of 10,000 keys: what a run costs
// when there is nothing to do.
func BenchmarkEqual(b *testing.B) {
	east := newRegion(b, 1)
	east.keys(10_000)
	west := east.clone(1)
	src, dst := east.open(appliance), west.open(appliance)
	for b.Loop() {
		p, err := NewPlan(context.Background(), src, dst, Options{})
		if err != nil || !p.Result.RootsEqual || p.Result.RoundTrips != 1 {
			b.Fatalf("%v, %+v", err, p)
		}
	}
}
