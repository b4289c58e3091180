package soft

import (
	"encoding/hex"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// infoOf returns what may be shown of a key, with the attributes that follow
// from its public key.
func infoOf(r *hsm.Record, digest hsm.Digest) hsm.KeyInfo {
	k := r.BareInfo(digest)
	if len(r.Core.Public) == 0 {
		return k
	}
	if point, ok := mech.PointOf(r.Core.Public); ok {
		k.Attributes["ec-point"] = "0x" + hex.EncodeToString(point)
		return k
	}
	public, err := mech.ParsePublic(r.Core.Public)
	if err != nil {
		return r.Info(digest) // not a kind of key this software knows
	}
	if point := public.PointDER(); point != nil {
		k.Attributes["ec-point"] = "0x" + hex.EncodeToString(point)
	}
	if modulus, exponent, ok := public.RSA(); ok {
		k.Attributes["modulus"] = "0x" + hex.EncodeToString(modulus)
		k.Attributes["public-exponent"] = "0x" + hex.EncodeToString(exponent)
	}
	return k
}
