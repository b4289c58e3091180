// Package sim is a deterministic simulation of clusters: the real software HSM,
// client, server-side sync and synckey, under virtual time (testing/synctest), on
// disks and over a network that exist in memory only and fail as one seed decides.
//
// # What is real and what is not
//
// Real: the HSM as a process runs it (server.Create, server.Open, Serve): its object
// store, its folder with keys and configuration, audit log, states, server-side sync
// with its greetings and its resolution of operations in doubt; invitation, joining and
// removal (cluster.Invite, server.Join, cluster.Remove); the client (cluster.Open with a
// dialer of its own); synckey. In place of gRPC and TLS stands network: it carries each
// call of hsm.Module and hsm.Session, and each request to join, as a request and a reply,
// and streams in pieces; it vouches for who is who, as TLS does. In place of the disk of
// the object store stands disk: pebble's MemFS, which knows what was synced. The file of
// the audit log is in memory, too. The other small files of a folder are real ones, and
// durable when they are written.
//
// # Faults
//
// A message is lost, delayed, delivered twice (once much later), or overtaken; a
// call is done and its reply lost; links are cut, also in one direction, and heal.
// An HSM crashes between two calls, or at any write, sync, rename or removal of a
// file; of what was not synced then some, all or nothing is left. Its disk is full;
// its clock jumps by minutes; it comes back with an old image of its disk; it is
// removed and a new one takes its place. A client dies in the middle of whatever
// it does.
//
// Members come and go meanwhile: an HSM joins, and crashes at any step of that, or loses
// its disk and begins anew; two come with one token; one is removed, in good order or by
// force, and its admin dies half way; several are removed at once, or one while another is
// invited, and the others are cut off; one that was removed comes back; a folder is copied,
// and two HSMs run with one identity.
//
// # What is checked
//
// One checker reads every HSM directly, past the network, after each message that
// changed one (see checker). What clients saw goes through integration/history.
//
// # What a seed decides
//
// Everything that harness, checker and clients see: the sequence of messages,
// faults, states and answers, with their virtual times to the nanosecond, is the
// same in each run of a seed (TestSeedReplays compares the whole trace). The fate
// of a message is a function of the seed and of the message, not of the order in
// which goroutines run; no two messages arrive at one instant, and the world is
// quiet before time goes on. All chance in the product comes from crypto/rand,
// which the seed replaces.
//
// One goroutine runs at a time, and which one is next is up to Go. Go takes the processor
// from one that has run for 10 ms of real time or waits for the operating system, stops all
// of them to collect garbage, and draws lots among the cases of a select, the keys of a map
// and the timers of an instant. Within one instant another goroutine is then first: to log
// in, or to make the step of a disk at which the power fails. So no garbage is collected
// while a seed runs, and make test, make sim and make replay build with an overlay (see
// overlay.sh) by which Go's runtime does none of the rest. Then a seed goes the same way
// in each run, in every process, on a machine however busy, and the first difference is an
// error. Built without it, as by go test ./integration/sim, a run goes another way now and
// then, and sooner on a busy machine; the next may go the seed's own way again.
//
// The overlay leaves what follows from addresses in memory: in which order the end of a
// context wakes more than eight who wait for it. These have nothing left to do but to abort
// what they began and to hang up; in 459 pairs of runs no trace has changed by it.
package sim
