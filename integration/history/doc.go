// Package history decides whether what clients of a cluster saw of its keys can
// have happened.
//
// Clients record each creation, use and destruction of a key with a Recorder:
// when it was asked for, when it was answered, and what the answer means. Check
// then looks, key by key, for an order of these operations that a cluster which
// keeps its promises could have gone through (linearizability, by
// anishathalye/porcupine). The promises:
//
//   - After a creation is acknowledged the key is there until its destruction is
//     asked for: no use answers that there is no such key.
//   - After a destruction is acknowledged by every HSM the key never works again.
//   - After a creation failed with nothing left behind the key never works.
//   - An operation with an unknown outcome takes effect at any later time or never.
//
// HSMs that nobody could reach are told later. Until then the client knows, and
// says (Residue), that the state before may show up on them: a destroyed key may
// still work there, and so may one whose creation failed. Settled ends that: at a
// moment when all HSMs are known to hold the same and no operation is pending,
// nothing is left of any residue, and each unknown outcome is decided for good.
//
// An answer that an HSM, or enough copies, cannot be reached is no evidence of
// anything.
package history
