package figures

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cpuTime is what processes have spent so far, in user and system mode. Unlike
// time on the clock it says something on a machine that does other work too.
func cpuTime(tb testing.TB, pids ...int) time.Duration {
	tb.Helper()
	const hertz = 100 // USER_HZ, which is 100 on every Linux that Go runs on
	var ticks int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			tb.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), ") ") // the name may hold spaces
		fields := strings.Fields(rest)
		for _, i := range []int{11, 12} { // utime and stime, fields 14 and 15
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / hertz
}

// reportCPU reports what the servers spend for an operation while f runs b.N of
// them, and what this process does.
func reportCPU(b *testing.B, pids []int, f func()) {
	b.Helper()
	before, own := cpuTime(b, pids...), cpuTime(b, os.Getpid())
	f()
	b.ReportMetric(float64((cpuTime(b, pids...)-before).Microseconds())/float64(b.N), "server-cpu-µs/op")
	b.ReportMetric(float64((cpuTime(b, os.Getpid())-own).Microseconds())/float64(b.N), "own-cpu-µs/op")
}
