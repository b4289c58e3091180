package mech

import (
	"crypto"
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// hashNames in ascending order of output length.
var hashNames = []string{"sha1", "sha224", "sha256", "sha384", "sha512"}

var hashes = map[string]crypto.Hash{
	"sha1":   crypto.SHA1,
	"sha224": crypto.SHA224,
	"sha256": crypto.SHA256,
	"sha384": crypto.SHA384,
	"sha512": crypto.SHA512,
}

// parseHash finds a hash by name; an unknown or missing name is ErrHash.
func parseHash(name string) (crypto.Hash, error) {
	if h, ok := hashes[name]; ok {
		return h, nil
	}
	if name == "" {
		return 0, refuse(ErrHash, "none given; there are %s", list(hashNames))
	}
	return 0, refuse(ErrHash, "%.40q; there are %s", name, list(hashNames))
}

func digest(h crypto.Hash, data []byte) []byte {
	d := h.New()
	d.Write(data)
	return d.Sum(nil)
}
