// Package cluster is a cluster as its callers see it: several HSMs that behave
// as one.
//
// Open connects to every HSM it can reach, from any one address on. A *Cluster
// is an hsm.Replica, so that backup and synckey treat it as any other; and it
// creates, changes and uses keys under the cluster's durability policy:
//
//   - Create is client-side sync. The key is made provisional on one HSM, copied
//     to all others, and committed when enough hold it. Success means MinCopies
//     durable copies; failure leaves no key behind.
//   - Use goes to an HSM that holds the key, the least loaded first, and to the
//     next when one fails.
//   - Change is applied on one HSM and copied to the others at once.
//
// What client-side sync leaves undone because an HSM was away, server-side sync
// (package cluster/server) finishes.
package cluster
