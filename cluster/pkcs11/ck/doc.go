// Package ck holds the numbers and names of PKCS #11: return values, object
// classes, attributes, mechanisms and flags, as the OASIS headers of v2.40, v3.0
// and v3.2 define them.
package ck
