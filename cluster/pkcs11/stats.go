package pkcs11

import "sync/atomic"

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
