// Package profile reads and writes the two files by which a client knows
// clusters: the profile of one cluster (cluster.yaml), and the user's
// configuration, which names profiles. Both are YAML, decoded strictly: an
// unknown key is an error, never ignored. Neither holds a secret; the private
// keys they point to lie in files of their own.
package profile
