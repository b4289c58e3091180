// Package rpc carries the contract of package hsm over the network: a Server
// that offers an hsm.Module, and Dial, which gives an hsm.Module that is
// elsewhere. Errors keep their text and match the same sentinels on both sides.
//
// The wire is gRPC over mutual TLS 1.3 (package pki; pb/hsm.proto). It is the
// only package that knows so.
//
// A session lasts as long as one stream on one connection. When the connection
// ends, for whatever reason, its sessions are closed and their session keys are
// gone. A token is of use on its own connection only, and is stored hashed.
//
// What a session asks for all the time, uses of keys and steps of creations, shares
// one stream of the session (Calls); an older HSM, which does not know it, gets a
// call for each. A call means the same either way.
//
// Nothing is retried that might have been done: a call that fails with
// hsm.ErrUnavailable may or may not have taken effect. A dead peer is noticed
// within about five seconds, whether it is gone, stopped or cut off.
//
// Contents of requests are never logged.
package rpc
