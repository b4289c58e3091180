package pkcs11

import (
	"sync/atomic"

	"github.com/hsmbackup/hsmbackup/cluster/metrics"
)

// Stats counts what the daemon does.
type Stats struct {
	Applications atomic.Int64 // since the start
	Connected    atomic.Int64
	Sessions     atomic.Int64 // open
	Logins       atomic.Int64
	LoginsFailed atomic.Int64
	Calls        atomic.Int64
	Errors       atomic.Int64 // calls that were answered with another value than CKR_OK
	Refusals     atomic.Int64 // of the availability check
}

var statsMetrics = []metrics.Desc{
	{Name: "hsmbackup_client_applications_total", Help: "Applications that have connected.", Counter: true},
	{Name: "hsmbackup_client_applications", Help: "Applications that are connected."},
	{Name: "hsmbackup_client_sessions", Help: "PKCS #11 sessions that are open."},
	{Name: "hsmbackup_client_logins_total", Help: "Logins of applications.", Counter: true},
	{Name: "hsmbackup_client_login_failures_total", Help: "Logins that were refused.", Counter: true},
	{Name: "hsmbackup_client_calls_total", Help: "PKCS #11 calls.", Counter: true},
	{Name: "hsmbackup_client_call_errors_total", Help: "PKCS #11 calls that did not return CKR_OK.", Counter: true},
	{Name: "hsmbackup_client_availability_refusals_total", Help: "Calls refused because a key was on too few HSMs.", Counter: true},
}

// show is for metrics.Registry.Collect.
func (s *Stats) show(set func(name string, value float64, labels ...string)) {
	for i, v := range []*atomic.Int64{&s.Applications, &s.Connected, &s.Sessions, &s.Logins, &s.LoginsFailed, &s.Calls, &s.Errors, &s.Refusals} {
		set(statsMetrics[i].Name, float64(v.Load()))
	}
}
