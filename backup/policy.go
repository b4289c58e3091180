package backup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The bounds of a retention in days, as CloudHSM has them, and its default.
const (
	MinRetentionDays     = 7
	MaxRetentionDays     = 379
	DefaultRetentionDays = 90
)

// Unlimited as a count keeps all.
const Unlimited = -1

// Policy says which snapshots of a cluster to keep. A snapshot stays if any rule
// keeps it. The rules and their meaning are restic's, and Days is CloudHSM's.
// Hours, days, weeks from Monday, months and years are those of UTC, so that
// all hosts agree on them; the time of a snapshot is when it was begun.
type Policy struct {
	// Last keeps the newest n; the others the newest of each of the last n hours,
	// days, … that have one. With fewer than n of them the oldest snapshot stays too.
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps all that are younger than the newest one by less than this;
	// the others the newest of each hour, day, … within it.
	Within, WithinHourly, WithinDaily, WithinWeekly, WithinMonthly, WithinYearly Period
	// Tags keeps what has all tags of one of the lists.
	Tags []TagList
	// Days keeps what is younger than so many days; 0 is no rule.
	Days int
}

// Empty tells whether no rule keeps anything.
func (p Policy) Empty() bool {
	rules := p.counted()
	return p.Days == 0 && len(p.Tags) == 0 && p.Within.IsZero() &&
		!slices.ContainsFunc(rules, func(r counted) bool { return r.count != 0 }) &&
		!slices.ContainsFunc(p.timed(), func(r timed) bool { return !r.within.IsZero() })
}

// Check refuses what is out of bounds, by name. hsm.ErrInvalid.
func (p Policy) Check() error {
	if p.Days != 0 && (p.Days < MinRetentionDays || p.Days > MaxRetentionDays) {
		return fmt.Errorf("%w: a retention of %d days: want %d to %d", hsm.ErrInvalid, p.Days, MinRetentionDays, MaxRetentionDays)
	}
	for _, r := range p.counted() {
		if r.count < Unlimited {
			return fmt.Errorf("%w: keep %d %s snapshots: want a number, or unlimited", hsm.ErrInvalid, r.count, r.name)
		}
	}
	if p.Empty() {
		return fmt.Errorf("%w: no rule keeps anything", hsm.ErrInvalid)
	}
	return nil
}

// bucket names the hour, day, … that a time lies in. nr tells every snapshot
// from the others.
type bucket func(at time.Time, nr int) int

func byHour(t time.Time, _ int) int  { return byDay(t, 0)*100 + t.Hour() }
func byDay(t time.Time, _ int) int   { return byMonth(t, 0)*100 + t.Day() }
func byMonth(t time.Time, _ int) int { return t.Year()*100 + int(t.Month()) }
func byYear(t time.Time, _ int) int  { return t.Year() }
func each(_ time.Time, nr int) int   { return nr }

func byWeek(t time.Time, _ int) int {
	year, week := t.ISOWeek()
	return year*100 + week
}

// counted keeps the newest of each of the last count buckets.
type counted struct {
	name  string
	count int
	in    bucket
	last  int
}

func (p Policy) counted() []counted {
	return []counted{
		{"last", p.Last, each, -1}, {"hourly", p.Hourly, byHour, -1}, {"daily", p.Daily, byDay, -1},
		{"weekly", p.Weekly, byWeek, -1}, {"monthly", p.Monthly, byMonth, -1}, {"yearly", p.Yearly, byYear, -1},
	}
}

// keeps tells whether it keeps the next older snapshot.
func (c *counted) keeps(at time.Time, nr int, oldest bool) (reason string) {
	if c.count == 0 {
		return ""
	}
	v := c.in(at, nr)
	if v == c.last && !oldest {
		return ""
	}
	reason = c.name + " snapshot"
	if v == c.last {
		reason = "oldest " + reason
	}
	if c.last = v; c.count > 0 {
		c.count--
	}
	return reason
}

// timed keeps the newest of each bucket within a period before the newest.
type timed struct {
	name   string
	within Period
	in     bucket
	last   int
}

func (p Policy) timed() []timed {
	return []timed{
		{"hourly", p.WithinHourly, byHour, -1}, {"daily", p.WithinDaily, byDay, -1}, {"weekly", p.WithinWeekly, byWeek, -1},
		{"monthly", p.WithinMonthly, byMonth, -1}, {"yearly", p.WithinYearly, byYear, -1},
	}
}

func (c *timed) keeps(at, newest time.Time, nr int, oldest bool) (reason string) {
	if c.within.IsZero() || !at.After(c.within.before(newest)) {
		return ""
	}
	v := c.in(at, nr)
	if v == c.last && !oldest {
		return ""
	}
	reason = fmt.Sprintf("%s within %s", c.name, c.within)
	if v == c.last {
		reason = "oldest " + reason
	}
	c.last = v
	return reason
}

// candidate is what a policy looks at.
type candidate struct {
	at   time.Time
	tags map[string]string
}

// tolerance is how far ahead of ours another clock may be.
const tolerance = 5 * time.Minute

// apply returns for each candidate, newest first, the rules that keep it.
// Candidates from the future are kept and do not count: a writer whose clock is
// wrong, or who lies, must not push others out.
func (p Policy) apply(all []candidate, now time.Time) [][]string {
	reasons := make([][]string, len(all))
	first := 0
	for first < len(all) && all[first].at.After(now.Add(tolerance)) {
		reasons[first] = []string{"from the future"}
		first++
	}
	if first == len(all) {
		return reasons
	}
	counts, times, newest := p.counted(), p.timed(), all[first].at
	for i := first; i < len(all); i++ {
		c, nr, oldest := all[i], i-first, i == len(all)-1
		add := func(reason string) {
			if reason != "" {
				reasons[i] = append(reasons[i], reason)
			}
		}
		for _, l := range p.Tags {
			if l.match(c.tags) {
				add("has tags " + l.String())
			}
		}
		if !p.Within.IsZero() && c.at.After(p.Within.before(newest)) {
			add("within " + p.Within.String())
		}
		if p.Days > 0 && c.at.After(now.AddDate(0, 0, -p.Days)) {
			add(fmt.Sprintf("younger than %d days", p.Days))
		}
		for k := range counts {
			add(counts[k].keeps(c.at.UTC(), nr, oldest))
		}
		for k := range times {
			add(times[k].keeps(c.at.UTC(), newest, nr, oldest))
		}
	}
	return reasons
}

// TagList is tags that must all be there: NAME or NAME=VALUE. An empty list
// stands for no tags at all.
type TagList []string

// ParseTagList reads tags separated by commas.
func ParseTagList(s string) TagList {
	var l TagList
	for t := range strings.SplitSeq(s, ",") {
		if t = strings.TrimSpace(t); t != "" {
			l = append(l, t)
		}
	}
	return l
}

// String prints the list as it is parsed.
func (l TagList) String() string { return "[" + strings.Join(l, ",") + "]" }

func (l TagList) match(tags map[string]string) bool {
	if len(l) == 0 {
		return len(tags) == 0
	}
	for _, t := range l {
		name, want, exact := strings.Cut(t, "=")
		if got, ok := tags[name]; !ok || exact && got != want {
			return false
		}
	}
	return true
}

// Period is a number of years, months, days and hours.
type Period struct{ Years, Months, Days, Hours int }

// IsZero tells whether it is no time at all.
func (p Period) IsZero() bool { return p == Period{} }

func (p Period) before(t time.Time) time.Time {
	return t.AddDate(-p.Years, -p.Months, -p.Days).Add(-time.Duration(p.Hours) * time.Hour)
}

// String prints it as ParsePeriod reads it.
func (p Period) String() string {
	var b strings.Builder
	for _, v := range []struct {
		n    int
		unit string
	}{{p.Years, "y"}, {p.Months, "m"}, {p.Days, "d"}, {p.Hours, "h"}} {
		if v.n != 0 {
			fmt.Fprintf(&b, "%d%s", v.n, v.unit)
		}
	}
	return b.String()
}

// maxPeriod bounds each number of a period: far beyond any archive, and far from
// what overflows a time.
const maxPeriod = 100_000

// ParsePeriod reads restic's notation: 1y5m7d2h, each unit at most once, in any
// order; m are months. hsm.ErrInvalid.
func ParsePeriod(s string) (Period, error) {
	var p Period
	bad := fmt.Errorf("%w: period %q: want a number of years, months, days, hours, such as 1y6m7d12h", hsm.ErrInvalid, s)
	units := map[byte]*int{'y': &p.Years, 'm': &p.Months, 'd': &p.Days, 'h': &p.Hours}
	for rest := s; rest != ""; {
		i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if i <= 0 {
			return Period{}, bad
		}
		n, err := strconv.Atoi(rest[:i])
		field := units[rest[i]]
		if err != nil || field == nil || n > maxPeriod {
			return Period{}, bad
		}
		*field = n
		delete(units, rest[i])
		rest = rest[i+1:]
	}
	if p.IsZero() {
		return Period{}, bad
	}
	return p, nil
}
