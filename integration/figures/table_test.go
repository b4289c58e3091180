package figures

import (
	"fmt"
	"strings"
	"testing"
)

// figures is what one run has measured.
type figures struct {
	keys  int
	bytes int64
	rows  []row
}

// row is one figure: the mean of a few runs.
type row struct {
	what         string
	seconds, cpu float64
	peak         int64 // bytes of memory
	note         string
}

// set keeps a figure; of a benchmark that is run again, the last.
func (f *figures) set(b *testing.B, what string, u usage, note string) {
	r := row{what: what, seconds: b.Elapsed().Seconds() / float64(b.N), cpu: u.cpu.Seconds() / float64(max(u.runs, 1)), peak: u.peak, note: note}
	for i := range f.rows {
		if f.rows[i].what == what {
			f.rows[i] = r
			return
		}
	}
	f.rows = append(f.rows, r)
}

func (f *figures) seconds(what string) float64 {
	for _, r := range f.rows {
		if r.what == what {
			return r.seconds
		}
	}
	return 0
}

// rate is in MB a second, 0 if it was not measured.
func (f *figures) rate(what string) float64 {
	s := f.seconds(what)
	if s == 0 {
		return 0
	}
	return float64(f.bytes) / 1e6 / s
}

// verifyRate is wanted of verification, in MB a second, unless age and zstd are slower.
const verifyRate = 400.0

// bars are to be beaten: seconds for 1 GiB of records of 1 KiB against a MinIO on two
// quiet cores, as they were measured of a prototype and of restic 0.14.
var bars = []struct {
	what    string
	seconds float64
	whose   string
}{
	{"take", 5.2, "a prototype"}, {"increment-1%", 1.2, "a prototype"},
	{"verify-root", 4.5, "a prototype"}, {"restore-1", 5.0, "restic"}, {"restore-3", 5.0, "restic"},
}

// beside are the figures of the same run that a figure is held against: want times as
// fast as those.
var beside = []struct {
	what, other string
	want        float64
}{
	{"take", "limit=zstd|age", 2}, {"take", "pipe=hsm|zstd|age|store", 1}, {"take", "restic-first", 1}, {"increment-1%", "restic-increment-1%", 1},
	{"verify-root", "restic-check", 1}, {"restore-1", "limit=load", 0.7}, {"restore-3", "limit=load", 0.7}, {"restore-3", "limit=load-3", 0.7},
	{"restore-1", "restic-restore", 1},
}

func (f *figures) String() string {
	var w strings.Builder
	fmt.Fprintf(&w, "\n%d keys, %.0f MB\n%-24s %9s %8s %8s %9s\n", f.keys, float64(f.bytes)/1e6, "what", "seconds", "MB/s", "cpu-s", "peak MiB")
	for _, r := range f.rows {
		fmt.Fprintf(&w, "%-24s %9.3f %8.1f %8.3f %9.0f  %s\n", r.what, r.seconds, float64(f.bytes)/1e6/r.seconds, r.cpu, float64(r.peak)/(1<<20), r.note)
	}
	for _, c := range beside {
		if ours, other := f.seconds(c.what), f.seconds(c.other); ours > 0 && other > 0 {
			fmt.Fprintf(&w, "%-24s %6.2f times as fast as %s, want %.1f%s\n", c.what, other/ours, c.other, c.want, verdict(other/ours < c.want))
		}
	}
	if ours, limit := f.rate("verify-root"), f.rate("limit=age|zstd"); ours > 0 && limit > 0 {
		want := min(verifyRate, limit)
		fmt.Fprintf(&w, "%-24s %6.0f MB/s, want %.0f or what age and zstd do, %.0f%s\n", "verify-root", ours, verifyRate, limit, verdict(ours < want))
	}
	for _, c := range bars {
		if s := f.seconds(c.what) * (1 << 30) / float64(f.bytes); s > 0 && f.bytes > 1<<28 { // of less, what does not grow would be counted many times
			fmt.Fprintf(&w, "%-24s %6.2f s for each GiB, %s %.1f%s\n", c.what, s, c.whose, c.seconds, verdict(s > c.seconds))
		}
	}
	return w.String()
}

func verdict(is bool) string {
	if is {
		return "  MISSED"
	}
	return ""
}

// curve shows seconds by the number of keys.
func curve(all []*figures) string {
	if len(all) < 2 {
		return ""
	}
	var w strings.Builder
	fmt.Fprintf(&w, "\n%-24s", "seconds by keys")
	for _, f := range all {
		fmt.Fprintf(&w, " %9d", f.keys)
	}
	for _, r := range all[0].rows {
		fmt.Fprintf(&w, "\n%-24s", r.what)
		for _, f := range all {
			fmt.Fprintf(&w, " %9.3f", f.seconds(r.what))
		}
	}
	fmt.Fprintln(&w)
	return w.String()
}
