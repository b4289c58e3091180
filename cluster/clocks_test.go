package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAClockThatIsOffShows: of the HSM that it is, and of no other.
func TestAClockThatIsOffShows(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tc := range []struct {
		name    string
		offsets []time.Duration
		states  []string
		notices []string
	}{
		{"all right", []time.Duration{0, time.Second, -2 * time.Second}, []string{"ACTIVE", "ACTIVE", "ACTIVE"}, []string{"", "", ""}},
		{"minutes ahead", []time.Duration{0, 0, 6 * time.Minute}, []string{"ACTIVE", "ACTIVE", "DEGRADED"}, []string{"", "", "6m0s ahead"}},
		{"a little ahead", []time.Duration{2 * time.Minute, 0, 0}, []string{"ACTIVE", "ACTIVE", "ACTIVE"}, []string{"2m0s ahead", "", ""}},
		{"behind", []time.Duration{-time.Hour, 0}, []string{"DEGRADED", "ACTIVE"}, []string{"1h0m0s behind", ""}},
		{"this host is off", []time.Duration{time.Hour, time.Hour, time.Hour}, []string{"ACTIVE", "ACTIVE", "ACTIVE"}, []string{"", "", ""}},
	} {
		out, states := &Info{}, map[*remote]hsm.Info{}
		for i, offset := range tc.offsets {
			id := hsm.HSMID(i + 1)
			out.HSMs = append(out.HSMs, HSMInfo{ID: id, State: "ACTIVE"})
			states[&remote{}] = hsm.Info{ID: id, Time: now.Add(offset)}
		}
		noteClocks(out, states, now)
		for i, h := range out.HSMs {
			if h.State != tc.states[i] || (tc.notices[i] == "") != (h.Notice == "") || !strings.Contains(h.Notice, tc.notices[i]) {
				t.Errorf("%s: HSM %d is %s %q, want %s %q", tc.name, i+1, h.State, h.Notice, tc.states[i], tc.notices[i])
			}
		}
	}
}
