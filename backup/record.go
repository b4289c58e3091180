package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// levels are the levels of verification, by their number in a record.
var levels = []Level{1: LevelHashes, 2: LevelRoot, 3: LevelUse}

func levelNumber(l Level) int {
	for n, known := range levels {
		if known == l {
			return n
		}
	}
	return 0
}

// readVerified reads one record and checks that it is of this manifest, and its
// signature if it has one.
func readVerified(ctx context.Context, store storage.Store, path string, id format.Marked, lineage hsm.Lineage) (*Verified, error) {
	stored, err := storage.ReadAll(ctx, store, path, format.MaxRecord)
	if errors.Is(err, storage.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %s: more than %d bytes", ErrCorrupt, path, format.MaxRecord)
	}
	if err != nil {
		return nil, err
	}
	v, body, signature, err := format.DecodeVerification(stored)
	if err == nil && len(signature.Public) > 0 {
		err = signature.Verify(lineage, hsm.PurposeVerified, body)
	}
	if err == nil && (format.VerificationPath(v) != path || v.Manifest != id.Manifest) {
		err = fmt.Errorf("%w: it is the record of another verification", ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Verified{
		Level: levels[v.Level], At: v.At, OK: v.OK, Checked: int(v.Checked), Packs: int(v.Packs), KeysUsed: int(v.KeysUsed),
		Signed: len(signature.Public) > 0, path: path,
	}, nil
}

// Record keeps what a verification found as a record in the repository: when,
// at which level, how much. It is signed if the identities opened the recovery
// envelope. keysUsed is what level use adds to a report of level root, and
// failed how many keys did not work. A store that one may only read refuses it
// (storage.ErrDenied).
func (r *VerifyReport) Record(ctx context.Context, store storage.Store, level Level, keysUsed, failed int, software string) error {
	v := format.Verification{
		Sequence: r.id.Sequence, Manifest: r.id.Manifest, Level: uint64(levelNumber(level)), At: time.Now(), OK: r.OK() && failed == 0, Checked: uint64(r.Checked), Packs: uint64(r.Packs),
		Turn: r.Turn, Objects: r.Objects, Problems: uint64(len(r.Problems) + failed), KeysUsed: uint64(keysUsed), Software: software,
	}
	for range maxTries {
		body, err := format.EncodeVerificationBody(v)
		if err != nil {
			return err
		}
		var signature hsm.LineageSignature
		if r.keyring != nil {
			signature = r.keyring.Sign(hsm.PurposeVerified, body)
		}
		stored, err := format.EncodeVerification(body, signature)
		if err != nil {
			return err
		}
		done, err := createOnce(ctx, store, format.VerificationPath(v), stored)
		if err != nil || done {
			return err
		}
		v.At = v.At.Add(time.Millisecond) // another verifier had the same moment
	}
	return fmt.Errorf("%w: %d records in one moment", ErrRaced, maxTries)
}
