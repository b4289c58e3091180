package backup

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func day(y, m, d int) time.Time { return time.Date(y, time.Month(m), d, 11, 0, 0, 0, time.UTC) }

// kept applies a policy to snapshots at these times, given newest first, and
// returns those that stay.
func kept(p Policy, now time.Time, times ...time.Time) (out []time.Time) {
	all := make([]candidate, len(times))
	for i, at := range times {
		all[i] = candidate{at: at}
	}
	for i, reasons := range p.apply(all, now) {
		if len(reasons) > 0 {
			out = append(out, times[i])
		}
	}
	return out
}

// every returns n times, newest first, with a pause between them.
func every(n int, newest time.Time, pause time.Duration) (out []time.Time) {
	for i := range n {
		out = append(out, newest.Add(-time.Duration(i)*pause))
	}
	return out
}

// TestTwelveSundays is the example of restic's manual: daily 4 of weekly
// snapshots keeps four Sundays.
func TestTwelveSundays(t *testing.T) {
	sundays := every(12, day(2019, 11, 17), 7*24*time.Hour)
	got := kept(Policy{Daily: 4}, day(2019, 11, 20), sundays...)
	want := []time.Time{day(2019, 11, 17), day(2019, 11, 10), day(2019, 11, 3), day(2019, 10, 27)}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestAHundredYears is the other example of restic's manual: a snapshot every
// day for 100 years.
func TestAHundredYears(t *testing.T) {
	newest := day(2119, 11, 15) // a Wednesday
	days := every(36525, newest, 24*time.Hour)
	p := Policy{Daily: 7, Weekly: 5, Monthly: 12, Yearly: 75}
	got := kept(p, newest, days...)
	// 7 days; 4 Sundays more, the week of today being among the days; the ends of
	// the 11 months before this one, of which October's lies outside of the weeks'
	// Sundays; the ends of 74 years before this one, of which last year's is the end
	// of a month too.
	want := map[time.Time]bool{}
	for i := range 7 {
		want[newest.AddDate(0, 0, -i)] = true
	}
	for _, d := range []int{12, 5} {
		want[day(2119, 11, d)] = true
	}
	for _, d := range []int{29, 22} {
		want[day(2119, 10, d)] = true
	}
	for m := range 11 {
		want[day(2119, 11-m, 0)] = true
	}
	for y := 2118; y > 2118-74; y-- {
		want[day(y, 12, 31)] = true
	}
	if len(got) != len(want) || slices.ContainsFunc(got, func(at time.Time) bool { return !want[at] }) {
		t.Fatalf("%d stay, want %d: %v", len(got), len(want), got)
	}
}

func TestOldestStaysWhileCountsAreLeft(t *testing.T) {
	times := []time.Time{day(2026, 5, 3), day(2026, 5, 2).Add(time.Hour), day(2026, 5, 2)}
	if got := kept(Policy{Daily: 5}, day(2026, 5, 4), times...); len(got) != 3 {
		t.Errorf("daily 5: %v", got)
	}
	if got := kept(Policy{Daily: 2}, day(2026, 5, 4), times...); len(got) != 2 {
		t.Errorf("daily 2: %v", got)
	}
	reasons := Policy{Daily: 5, WithinDaily: Period{Days: 30}}.apply([]candidate{{at: times[1]}, {at: times[2]}}, day(2026, 5, 4))
	if d := cmp.Diff([][]string{{"daily snapshot", "daily within 30d"}, {"oldest daily snapshot", "oldest daily within 30d"}}, reasons); d != "" {
		t.Error(d)
	}
}

func TestRulesOfPolicy(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 30, 0, 0, time.UTC) // a Wednesday
	hours := every(24*40, now.Add(-10*time.Minute), time.Hour)
	for name, c := range map[string]struct {
		policy Policy
		want   int
	}{
		"last":              {Policy{Last: 3}, 3},
		"last, unlimited":   {Policy{Last: Unlimited}, len(hours)},
		"hourly":            {Policy{Hourly: 5}, 5},
		"daily":             {Policy{Daily: 5}, 5},
		"weekly":            {Policy{Weekly: 3}, 3},
		"monthly":           {Policy{Monthly: 2}, 2},
		"monthly, few":      {Policy{Monthly: 9}, 4}, // March, February, January, and the oldest
		"yearly":            {Policy{Yearly: 9}, 2},  // this year, and the oldest
		"within":            {Policy{Within: Period{Hours: 5}}, 5},
		"within a month":    {Policy{Within: Period{Months: 1}}, 28 * 24},
		"within daily":      {Policy{WithinDaily: Period{Days: 3}}, 4}, // today, and three days that end within
		"within weekly":     {Policy{WithinWeekly: Period{Days: 7}}, 2},
		"within monthly":    {Policy{WithinMonthly: Period{Years: 1}}, 4},
		"within yearly":     {Policy{WithinYearly: Period{Years: 9}}, 2},
		"days":              {Policy{Days: 7}, 7 * 24},
		"days before any":   {Policy{Days: 379}, len(hours)},
		"rules add up":      {Policy{Last: 2, Within: Period{Hours: 5}}, 5},
		"tags of others":    {Policy{Last: 1, Tags: []TagList{{"x"}}}, 1},
		"no tags":           {Policy{Tags: []TagList{{}}}, len(hours)},
		"within an hour":    {Policy{Within: Period{Hours: 1}}, 1},
		"hourly, unlimited": {Policy{Hourly: Unlimited}, len(hours)},
	} {
		if got := kept(c.policy, now, hours...); len(got) != c.want || len(got) > 0 && !got[0].Equal(hours[0]) {
			t.Errorf("%s: %d stay, want %d", name, len(got), c.want)
		}
	}
}

func TestTagLists(t *testing.T) {
	tags := map[string]string{"env": "prod", "why": "release"}
	for text, want := range map[string]bool{
		"env": true, "env=prod": true, "env=test": false, "env,why": true, "env=prod,why=release": true, "env,other": false, "": false, "en": false,
	} {
		if got := ParseTagList(text).match(tags); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
	if !ParseTagList("").match(nil) || ParseTagList("x").match(nil) {
		t.Error("untagged")
	}
}

// TestTheFuturePushesNothingOut: a writer whose clock is years ahead keeps its
// snapshot, and no other goes for it.
func TestTheFuturePushesNothingOut(t *testing.T) {
	now := day(2026, 5, 10)
	times := every(10, now, 24*time.Hour)
	for _, p := range []Policy{{Last: 3}, {Daily: 3}, {Within: Period{Days: 3}}, {WithinDaily: Period{Days: 3}}, {Yearly: 2}, {Days: 7}} {
		want := kept(p, now, times...)
		got := kept(p, now, append([]time.Time{day(2099, 1, 1)}, times...)...)
		if d := cmp.Diff(want, got[1:]); d != "" || !got[0].Equal(day(2099, 1, 1)) {
			t.Errorf("%+v: %s", p, d)
		}
	}
}

func TestPolicyBounds(t *testing.T) {
	for _, days := range []int{7, 90, 379} {
		if err := (Policy{Days: days}).Check(); err != nil {
			t.Error(err)
		}
	}
	for _, days := range []int{-1, 6, 1, 380, 10000} {
		err := (Policy{Days: days}).Check()
		wantErr(t, err)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d days", days)) || !strings.Contains(err.Error(), "7 to 379") {
			t.Errorf("%d days: %v", days, err)
		}
	}
	for _, p := range []Policy{{}, {Last: -2}, {Last: 1, Yearly: -5}} {
		if err := p.Check(); err == nil {
			t.Errorf("%+v is accepted", p)
		}
	}
}

func TestPeriods(t *testing.T) {
	for text, want := range map[string]Period{
		"2y5m7d3h": {2, 5, 7, 3}, "7d": {Days: 7}, "3h2y": {Years: 2, Hours: 3}, "12m": {Months: 12},
	} {
		got, err := ParsePeriod(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if again, err := ParsePeriod(got.String()); err != nil || again != got {
			t.Errorf("%s prints as %s", text, got)
		}
	}
	for _, bad := range []string{"", "1w", "d", "7", "7d7d", "-1d", "1.5d", "0d", "1y 2m", "999999999d", "99999999999999999999d"} {
		if p, err := ParsePeriod(bad); err == nil {
			t.Errorf("%q is %+v", bad, p)
		}
	}
	if got := (Period{Years: 1, Months: 1, Days: 1, Hours: 1}).before(time.Date(2026, 3, 2, 1, 0, 0, 0, time.UTC)); !got.Equal(time.Date(2025, 2, 1, 0, 0, 0, 0, time.UTC)) {
		t.Error(got)
	}
}

// policies draws a policy that keeps something.
func policies(t *rapid.T) Policy {
	n := rapid.IntRange(0, 6)
	period := rapid.Custom(func(t *rapid.T) Period {
		return Period{Years: rapid.IntRange(0, 1).Draw(t, "y"), Months: rapid.IntRange(0, 2).Draw(t, "m"), Days: rapid.IntRange(0, 9).Draw(t, "d"), Hours: rapid.IntRange(0, 30).Draw(t, "h")}
	})
	return Policy{
		Last: n.Draw(t, "last"), Hourly: n.Draw(t, "hourly"), Daily: n.Draw(t, "daily"), Weekly: n.Draw(t, "weekly"), Monthly: n.Draw(t, "monthly"), Yearly: n.Draw(t, "yearly"),
		Within: period.Draw(t, "within"), WithinDaily: period.Draw(t, "within daily"), WithinMonthly: period.Draw(t, "within monthly"),
	}
}

// TestPolicyProperties: a rule that is added takes nothing away; what counts
// allow is never exceeded; applying a policy to what it kept keeps that.
func TestPolicyProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := day(2026, 6, 1)
		pauses := rapid.SliceOfN(rapid.IntRange(1, 24*60*10), 1, 60).Draw(t, "pauses")
		var times []time.Time
		at := now
		for _, minutes := range pauses {
			at = at.Add(-time.Duration(minutes) * time.Minute)
			times = append(times, at)
		}
		a, b := policies(t), policies(t)
		keptA, both := kept(a, now, times...), kept(union(a, b), now, times...)
		for _, at := range keptA {
			if !slices.Contains(both, at) {
				t.Fatalf("%v goes when rules are added", at)
			}
		}
		if d := cmp.Diff(keptA, kept(a, now, keptA...)); d != "" {
			t.Fatalf("the policy does not keep what it kept: %s", d)
		}
		most := a.Last + a.Hourly + a.Daily + a.Weekly + a.Monthly + a.Yearly
		if a.Within.IsZero() && a.WithinDaily.IsZero() && a.WithinMonthly.IsZero() && len(keptA) > most {
			t.Fatalf("%d stay, at most %d may", len(keptA), most)
		}
		if a.Last > 0 && !slices.Equal(times[:min(a.Last, len(times))], keptA[:min(a.Last, len(times))]) {
			t.Fatal("the last ones do not stay")
		}
	})
}

// union keeps what either policy keeps, and perhaps more.
func union(a, b Policy) Policy {
	longer := func(x, y Period) Period {
		return Period{max(x.Years, y.Years), max(x.Months, y.Months), max(x.Days, y.Days), max(x.Hours, y.Hours)}
	}
	return Policy{
		Last: max(a.Last, b.Last), Hourly: max(a.Hourly, b.Hourly), Daily: max(a.Daily, b.Daily), Weekly: max(a.Weekly, b.Weekly), Monthly: max(a.Monthly, b.Monthly), Yearly: max(a.Yearly, b.Yearly),
		Within: longer(a.Within, b.Within), WithinDaily: longer(a.WithinDaily, b.WithinDaily), WithinMonthly: longer(a.WithinMonthly, b.WithinMonthly),
	}
}
