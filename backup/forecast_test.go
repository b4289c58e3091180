package backup

import (
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func (p *pruned) forecast(t testing.TB, o ForecastOptions) (*Forecast, map[string]ForecastEntry) {
	t.Helper()
	o.At = p.store.now
	f, err := MakeForecast(t.Context(), p.store, o)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]ForecastEntry{}
	for _, e := range f.Snapshots {
		out[e.ID] = e
	}
	return f, out
}

// TestForecastComesTrue: what is foreseen happens, on that day, when snapshots
// go on at the pace.
func TestForecastComesTrue(t *testing.T) {
	for _, policy := range []Policy{{Last: 4}, {Days: 7}, {Within: Period{Days: 5}}, {Daily: 2, Weekly: 2}} {
		p := newPruned(t, 1)
		for range 3 {
			p.store.tick(24 * time.Hour)
			p.full(t)
		}
		f, foreseen := p.forecast(t, ForecastOptions{Policy: policy, Grace: DefaultGrace})
		if len(foreseen) != 4 || f.Until.Before(p.store.now.AddDate(1, 0, 0)) {
			t.Fatalf("%+v", f)
		}
		for range 12 {
			_, r := p.prune(t, PruneOptions{Policy: policy, Grace: DefaultGrace})
			for _, id := range r.Marked {
				if e, ok := foreseen[id]; ok && (e.Pending.Sub(p.store.now).Abs() > time.Hour || !e.Gone.Equal(e.Pending.Add(UndeleteWindow))) {
					t.Errorf("%+v: %s goes at %s, foreseen was %s", policy, id, p.store.now, e.Pending)
				}
			}
			p.store.tick(24 * time.Hour)
			p.full(t)
		}
	}
}

// TestForecastOfAKey: a destroyed key can be restored until the last snapshot
// goes that holds it, and is erased when the last pack goes.
func TestForecastOfAKey(t *testing.T) {
	p := newPruned(t, 2)
	ref := p.refs[0]
	p.hsm(0).Destroy(ref)
	p.store.tick(24 * time.Hour)
	p.snapshot(t) // an increment: an older pack holds the key still
	p.store.tick(24 * time.Hour)
	p.full(t)
	o := ForecastOptions{Policy: Policy{Last: 2}, Grace: DefaultGrace, Pace: 24 * time.Hour, Key: &ref}
	f, _ := p.forecast(t, o)
	k := f.Key
	if len(k.Holders) != 3 || !k.Holders[0].Restorable || !k.Holders[1].Restorable || k.Holders[2].Restorable || k.Unnamed != 0 {
		t.Fatalf("%+v", k)
	}
	if want := p.store.now.Add(UndeleteWindow); !k.RestorableUntil.Equal(want) { // 1 and 2 go now
		t.Errorf("restorable until %s, want %s", k.RestorableUntil, want)
	}
	if want := p.store.now.Add(24*time.Hour + UndeleteWindow + 2*DefaultGrace); !k.ErasedAfter.Equal(want) { // 3 goes tomorrow, and may wait
		t.Errorf("erased after %s, want %s", k.ErasedAfter, want)
	}
	if _, err := Keep(t.Context(), p.store, "1", true, "test"); err != nil {
		t.Fatal(err)
	}
	f, entries := p.forecast(t, o)
	if !f.Key.RestorableUntil.IsZero() || !f.Key.ErasedAfter.IsZero() || !entries[fmtID(1)].Never {
		t.Fatalf("a snapshot that never expires: %+v", f.Key)
	}
	if _, err := Keep(t.Context(), p.store, "1", false, "test"); err != nil {
		t.Fatal(err)
	}
	p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true, Grace: DefaultGrace})
	f, _ = p.forecast(t, o)
	if k := f.Key; len(k.Holders) != 0 || k.Unnamed != 1 || k.ErasedAfter.IsZero() {
		t.Fatalf("packs in their grace period: %+v", k)
	}
	p.store.tick(DefaultGrace)
	p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true, Grace: DefaultGrace})
	f, _ = p.forecast(t, o)
	if k := f.Key; len(k.Holders) != 0 || k.Unnamed != 0 {
		t.Fatalf("it is erased: %+v", k)
	}
	none := hsm.KeyRef(12345)
	o.Key = &none
	if f, _ = p.forecast(t, o); len(f.Key.Holders) != 0 {
		t.Fatalf("%+v", f.Key)
	}
}
