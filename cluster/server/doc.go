// Package server is the HSM process: the software HSM behind gRPC, server-side
// sync with the other members, and the audit log. It also lays out the folders
// of new clusters, and runs the HSMs of one machine as a fleet of processes.
//
// # When the audit log cannot be written
//
// Every login and management command is recorded (package audit). When that
// fails, because the disk is full for instance, the HSM says so in its log and
// as state DEGRADED, and refuses what makes or changes keys, users, settings and
// members, and recovery envelopes: hsm.ErrFull, or hsm.ErrUnavailable if
// something else than space is missing. Callers go to another HSM. Keys can
// still be used, users can log in, and other members can still copy and sync
// keys to it, since each copy makes keys safer; what of these could not be
// recorded is counted. As soon as the log can be written again the HSM notes how
// many entries were lost, and serves as before.
package server
