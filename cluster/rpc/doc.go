// Package rpc carries the contract of package hsm over the network: a Server
// that offers an hsm.Module, and Dial, which gives an hsm.Module that is
// elsewhere. Errors keep their text and match the same sentinels on both sides.
//
// The wire is gRPC over mutual TLS 1.3 (package pki; pb/hsm.proto). It is the
// only package that knows so.
//
// A session lasts as long as one stream on one connection. When the connection
// ends, for whatever reason, its sessions are closed and their session keys are
// gone. A token is of use on its own connection, and on connections for calls from
// the same certificate, and is stored hashed.
//
// What a session asks for all the time, uses of keys and steps of creations, travels
// in frames on such a connection for calls: the same port, the same mutual TLS, told
// apart by ALPN (pki.CallsProtocol), begun by the session's token, and over when the
// session is or when its caller is put out. A frame is four bytes of length and
// one message (pb/hsm.proto says which, limits.go and frames.go how large). An older
// HSM, which does not know it, gets a call of gRPC for each, and so does any HSM
// while there is no such connection. A call means the same either way.
//
// Nothing is retried that might have been done: a call that fails with
// hsm.ErrUnavailable may or may not have taken effect. A dead peer is noticed
// within about five seconds, whether it is gone, stopped or cut off.
//
// Contents of requests are never logged.
package rpc
