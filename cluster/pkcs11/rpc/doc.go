// Package rpc is the wire between a PKCS #11 module and the daemon: p11-kit's RPC
// protocol, as its clients 0.24.1 to 0.26 speak it, and the same with the mechanism
// encoding of libhsmbackup-pkcs11.so (module/PROTOCOL.md).
//
// Everything a peer sends is hostile until it is decoded: by the signature of its
// call, strictly, to the last byte. Nothing is allocated because a peer says that it
// will send much, or that it has room for much.
//
// Serve answers connections. Each is one application: an App, made when the
// connection begins and closed when it ends or the application finalizes. Requests of one
// connection are served at the same time; answers are whole frames, in any order.
package rpc
