// Package integration tests the whole system as its users run it: the real
// binary, HSMs as processes of their own that are killed without warning, and a
// real S3 server. Nothing here is timed; deadlines only end what hangs.
package integration
