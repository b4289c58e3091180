package rpc

import (
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Limits of the wire.
const (
	// MaxMessage bounds one message, and with it the data of one Use, Create or
	// Sign; 4 MiB is gRPC's own default.
	MaxMessage = 4 << 20
	// MaxSessions bounds the sessions of one server.
	MaxSessions = 2048
	// sessionsForHSMs are kept for the members of the cluster, of which there are
	// at most 28.
	sessionsForHSMs = 64

	// batchBytes is the size a batch of masked objects or keys is sent at. One
	// object may still be added, so a message stays below twice this.
	batchBytes = 256 << 10
	// batchObjects is a batch of listed objects: 100 KiB.
	batchObjects = 4096
	// batchRefs is one request of Extract: 8 KiB, so that several fit into the
	// smallest HTTP/2 window and asking ahead never blocks.
	batchRefs = 1024
	// aheadRefs is how many requests of Extract may be unanswered.
	aheadRefs = 4
	// batchConflicts bounds the conflicts in one reply.
	batchConflicts = 16 << 10

	// firstCells is the first chunk of cells, maxCells the largest: 140 KiB.
	firstCells = 64
	maxCells   = 4096
	// aheadCells is what a caller allows at first: a difference of several
	// hundred is decoded after one round trip, and it is 36 KiB.
	aheadCells = 1024

	// maxCallsPerConnection bounds concurrent calls beside sessions.
	maxCallsPerConnection = 1024
	maxHeaderBytes        = 16 << 10

	// streamWindow and connWindow are what may be on its way unread, of one stream
	// and of one connection. Being fixed they spare the ping that gRPC sends beside
	// nearly every message to find a window out; being large they fill links of 100
	// ms with 40 MB/s.
	streamWindow = 4 << 20
	connWindow   = 8 << 20
)

// Limits of fields, in bytes or items. What is larger is ErrInvalid before it
// reaches an HSM.
const (
	maxWord       = 64       // role, method, kind, mechanism, hash, curve, purpose
	maxName       = 256      // names, addresses, ids
	maxPassword   = 1 << 10  // longer than any that is right
	maxTicket     = 4 << 10  //
	maxRecovery   = 1 << 20  // 4,096 masking keys take a quarter
	maxValue      = 4 << 10  // value of an attribute
	maxRecipient  = 8 << 10  // a post-quantum age recipient has about 2 KiB
	maxRecipients = 256      //
	maxAttributes = 64       // twice as many as there are
	maxShares     = 4096     //
	maxRefs       = 64 << 10 // of a filter
	maxObjects    = 4096     // of one Prepare, Create, batch
	maxMembers    = 1024     //
	maxCalls      = 64       // in one frame
	// a certificate has about 600 bytes, the sealed keys of a lineage about 3 KiB
	maxCertificates = 64 << 10
	maxSealed       = 1 << 20
	maxLength       = 1 << 20 // random bytes
	maxSigner       = 1 << 10 // public key, token or signature of a signer
	maxMasked       = hsm.MaxMasked
	maxFailure      = 2 << 10 // text of an error: it travels in HTTP/2 headers
	maxLease        = 24 * time.Hour
)

// streamWorkers is how many goroutines stay to serve calls: their stacks have
// grown already. When all are busy, others are started.
const streamWorkers = 64

// Times.
const (
	dialTimeout = 5 * time.Second
	// heartbeat is how often a connection is looked at; after pingAfter looks
	// without a byte from the HSM it is asked, after deadAfter it is dead.
	heartbeat = time.Second
	pingAfter = 2
	deadAfter = 5
	// The server pings a silent client after silence, and takes it for dead
	// when it does not answer.
	clientSilence = 4 * time.Second
	clientTimeout = 4 * time.Second
	// handshakeTimeout bounds a new connection up to its first HTTP/2 frame.
	handshakeTimeout = 10 * time.Second
	// lingerTime and lingerBytes bound how long a refused caller is listened to,
	// so that it reads why.
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 10
	// stopGrace is what running calls have when the server stops.
	stopGrace = 3 * time.Second
	// lostGrace is what answers have that were sent before the session's connection ended.
	lostGrace = 250 * time.Millisecond
	// drainGrace is what callers have to take their answers after that.
	drainGrace = time.Second
)
