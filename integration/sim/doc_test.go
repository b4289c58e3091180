// Package sim is a deterministic simulation of clusters: the real software HSM,
// client, server-side sync and synckey, under virtual time (testing/synctest), on
// disks and over a network that exist in memory only and fail as one seed decides.
//
// # What is real and what is not
//
// Real: cluster/hsm/soft with its object store, the client (cluster.Open with a
// dialer of its own), server-side sync with its resolution of operations in
// doubt (server.Sync), synckey. In place of gRPC and TLS stands network: it
// carries each call of hsm.Module and hsm.Session as a request and a reply, and
// streams in pieces. In place of the disk stands disk: pebble's MemFS, which
// knows what was synced.
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
// which the seed replaces. Not decided is what nobody sees: the order in which
// pebble's goroutines run within one instant.
package sim
