// Package mech holds the cryptographic mechanisms of the software HSM: it
// generates keys, parses key material, and signs, encrypts, wraps and derives
// with it. It knows nothing of storage, users, attributes or policy: whoever
// calls it has already decided that the key may do what is asked.
//
// # Key material
//
// A secret key is its raw bytes. A private key is PKCS #8 DER, a public key
// SubjectPublicKeyInfo (SPKI) DER, secp256k1 included. What this package writes
// is canonical, whatever form the key came in: DER without attributes; EC
// private keys of fixed length with their public point and, in the inner structure, no
// curve; points uncompressed; RSA keys of two primes, with the numbers they came with.
//
// [ParsePrivate], [ParsePublic] and [ParseSecret] take canonical and
// non-canonical but valid DER, refuse everything else (trailing bytes, BER,
// disagreeing halves, points off the curve, composite RSA factors), and return a key
// that is parsed once and may be used by many goroutines at the same time.
//
// # Names
//
// Mechanisms and hashes carry the names of the CloudHSM command line:
//
//	sign     rsa-pkcs, rsa-pkcs-pss, ecdsa, ed25519, ed25519ph, ml-dsa, ml-dsa-deterministic;
//	         of data as it is: rsa-pkcs-data, rsa-x-509, ecdsa-data
//	mac      hmac, aes-cmac
//	encrypt  aes-gcm (also cloudhsm-aes-gcm), aes-cbc-pad, aes-cbc, aes-ecb, aes-ctr,
//	         des3-cbc-pad, des3-cbc, des3-ecb, rsa-oaep, rsa-pkcs, rsa-x-509
//	wrap     aes-kwp (aes-zero-pad), aes-kw (aes-no-pad), aes-pkcs5-pad, aes-gcm, rsa-oaep, rsa-aes, rsa-pkcs
//	hash     sha1, sha224, sha256, sha384, sha512
//
// SHA-1 verifies old rsa-pkcs and ecdsa signatures and serves in HMAC and OAEP,
// where collisions do no harm; it never signs, unless the caller hashes by itself and
// has the result signed as data.
//
// # Randomness
//
// Every function that takes a reader accepts nil for the system's generator. Decrypt
// and Unwrap take one to have the shape of their reverse, and do not read it. The
// reader supplies secret keys, seeds of ML-DSA and ML-KEM, secp256k1 keys and nonces, CBC vectors and
// ephemeral wrapping keys. The standard library draws RSA, NIST curve and Ed25519
// keys, ECDSA nonces, OAEP and PSS salts and GCM nonces from the system's
// generator, whatever reader it is handed. AES-GCM nonces are random: use one
// key for no more than 2³² messages (NIST SP 800-38D, section 8.3).
//
// # Side channels
//
// The standard library's primitives, DES aside, and AES key wrap and CMAC here, do not
// branch on secrets. DES looks its tables up by secrets, as it does everywhere: do not
// let strangers time a des3 key. The secp256k1 library's point multiplication is not
// constant time; every multiplication by a secret is therefore split by a fresh
// random scalar, see secp256k1.go. That hides the scalar from an observer of
// many operations, and is weaker than constant time.
//
// # Secrets
//
// Keys and generated material print as "[redacted …]" under every fmt verb and
// in JSON. The parsed keys do so even in an unexported field of another struct; there fmt
// cannot be stopped from printing the byte slices of [Generated] and [Imported]. Errors never contain key material, and errors of [PrivateKey.Decrypt],
// [SecretKey.Decrypt], [SecretKey.Unwrap] and [PrivateKey.Unwrap] do not tell
// which check failed.
package mech
