package format

import "github.com/hsmbackup/hsmbackup/cluster/hsm"

// The limits of the format. A writer stays below them, a reader refuses what
// lies above, before it allocates.
const (
	// MinPackSize and MaxPackSize bound the target of a pack's stored size: below,
	// stores spend their time on requests (450 puts a second were measured);
	// above, a pack does not fit several times into the memory budget of 256 MiB.
	MinPackSize     = 1 << 20
	DefaultPackSize = 16 << 20
	MaxPackSize     = 64 << 20

	// MaxStoredPack is the largest pack that is read: the largest target, plus
	// one block that overshoots it, plus age's header and tags.
	MaxStoredPack = MaxPackSize + maxBlockBytes + 1<<20

	// BlockObjects and BlockBytes close a block: large enough that zstd finds
	// what attributes have in common, small enough that one key costs one block.
	BlockObjects = 1024
	BlockBytes   = 1 << 20

	// MaxBlockObjects is what a reader takes: room for later writers.
	MaxBlockObjects = 1 << 16

	// maxColumn is the largest decompressed column of a block: a full block that
	// the largest object overshoots, with room for later writers.
	maxColumn     = 4*BlockBytes + hsm.MaxMasked
	maxBlockBytes = 2 * maxColumn

	// maxBlocks bounds the blocks of a pack: one object each would be absurd.
	maxBlocks = 1 << 18

	// MaxPackObjects bounds the objects of a pack, and so an index: tombstones of
	// about 100 bytes in the largest pack, several times over.
	MaxPackObjects = 1 << 22

	// MaxIndex is the largest index: its items at 25 bytes and its blocks at 8.
	MaxIndex = 256 + MaxPackObjects*itemSize + maxBlocks*blockSize

	// MaxManifest holds MaxPacks packs at about 80 bytes, the sketch and the tags.
	MaxManifest = 16 << 20

	// MaxPacks bounds the packs of one snapshot. A writer starts over with a full
	// snapshot long before (backup.Take).
	MaxPacks = 1 << 17

	// MaxCells is the sketch prefix: about 700 differences are found without
	// reading an index, for 40 KiB of manifest.
	MaxCells = 1024

	// MaxUnsettled bounds the references that a manifest lists as unsettled; with
	// more, the take fails rather than write what cannot be proved.
	MaxUnsettled = 4096

	// MaxTags and MaxText bound texts that people choose.
	MaxTags = 64
	MaxText = 256

	// MaxMarked bounds the snapshots that one mark names, and MaxMark its bytes:
	// about 45 for each. Whoever marks more writes several marks.
	MaxMarked = 10_000
	MaxMark   = 1 << 20

	// MaxRecord holds a record of verification or of a copy, tags included.
	MaxRecord = 64 << 10

	// MaxLocation bounds the text that names a store: a bucket, a prefix, an
	// endpoint.
	MaxLocation = 1024

	// MaxMembers bounds the HSMs that a manifest names: CloudHSM has 28.
	MaxMembers = 1024

	// MaxEnvelope holds MaxCustodians hybrid headers of 1.7 KiB and the keys.
	MaxEnvelope = 1 << 20

	// MaxRecipientText bounds the text of an age recipient: a hybrid one has 1,959
	// characters, an ssh key of RSA-16384 some 2,800.
	MaxRecipientText = 8 << 10

	// MaxEpochs bounds the masking keys of a lineage: more do not fit MaxRecovery.
	MaxEpochs = 4096

	// MaxRecovery is the largest content of an envelope: some hundred masking
	// keys and a certificate authority.
	MaxRecovery = 256 << 10

	// MaxCustodians bounds the custodians of one envelope.
	MaxCustodians = 64

	// MaxSequence is the largest number of a snapshot: ten digits, so that names
	// sort as numbers do. One every second for three centuries.
	MaxSequence = 9_999_999_999
)
