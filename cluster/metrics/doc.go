// Package metrics shows how a process fares: numbers at /metrics in the text
// format of Prometheus, /healthz (the process lives) and /readyz (it does its
// work, or says what is missing). It knows nothing of HSMs; whoever has something
// to show makes a Registry, describes its metrics, and calls Serve.
//
// It is the only door to the Prometheus library, whose types do not leave it.
//
// # Whoever can reach the address can read it
//
// There is no login. An address without a host is one of this machine: ":9100"
// is 127.0.0.1:9100. Only a host that is named opens it to others. Nothing
// secret belongs into a metric, and no text a caller chose: names of keys and
// users are not labels. A metric has at most MaxSeries combinations of label
// values; further ones count as "other".
package metrics
