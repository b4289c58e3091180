package rpc

import "time"

// Limits of what a peer may send.
const (
	// MaxFrame bounds one request. PKCS #11 has no bound; larger data goes in parts.
	MaxFrame = 64 << 20
	// largeFrame is the size from which on requests wait for one of a few places, so
	// that many peers cannot fill memory at once.
	largeFrame  = 1 << 20
	largePlaces = 8
	// largeTime is what a peer has to send such a request.
	largeTime = 30 * time.Second
	// maxInFlight bounds the requests of one connection that are served at once.
	// Further ones wait in the socket.
	maxInFlight = 64
	// Requests that are being served hold at most connRoom bytes for one connection, or one
	// that is larger, and allRoom for all; those of at most smallFrame are not counted.
	// A request that waits for another of its session would otherwise keep its data as
	// long as that takes, 64 of them for each connection.
	smallFrame = 4 << 10
	connRoom   = 16 << 20
	allRoom    = 512 << 20
	// maxAttributes bounds one template, and maxDepth templates in templates.
	maxAttributes = 1024
	maxDepth      = 8
	maxMechanisms = 1024
	maxOptions    = 64 << 10
	maxItems      = 64 // of a KDF's parameter
	// openTime is what a new connection has for its first byte.
	openTime = 30 * time.Second
	// writeTime is what a peer has to take an answer.
	writeTime = 60 * time.Second
)
