package metrics

import (
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// MaxSeries bounds the combinations of label values of one metric, so that no
// caller makes a process grow by what it calls things.
const MaxSeries = 512

// other stands for label values beyond MaxSeries.
const other = "other"

// Registry is the set of metrics of a process. It is safe for concurrent use.
// Describing a metric twice, or with a name that is none, panics: names are
// written in the program, not read from anywhere.
type Registry struct {
	prometheus *prometheus.Registry
	in         prometheus.Registerer
}

// NewRegistry returns a registry that already holds what is known of every
// process: memory, CPU time, file descriptors, goroutines, and that it runs this
// version (hsmbackup_build_info).
func NewRegistry(version string) *Registry {
	p := prometheus.NewRegistry()
	r := &Registry{p, p}
	r.in.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.Gauge("hsmbackup_build_info", "Always 1; the label tells the version.", "version").Set(1, version)
	return r
}

// With returns the same registry for metrics that all carry these labels with
// these values.
func (r *Registry) With(labels map[string]string) *Registry {
	return &Registry{r.prometheus, prometheus.WrapRegistererWith(labels, r.in)}
}

// Gauge describes a number that goes up and down.
func (r *Registry) Gauge(name, help string, labels ...string) *Gauge {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.in.MustRegister(v)
	return &Gauge{series[prometheus.Gauge]{with: v.WithLabelValues, labels: len(labels)}}
}

// Counter describes a number that only grows. Its name ends in "_total".
func (r *Registry) Counter(name, help string, labels ...string) *Counter {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.in.MustRegister(v)
	return &Counter{series[prometheus.Counter]{with: v.WithLabelValues, labels: len(labels)}}
}

// Histogram describes how a quantity is distributed over buckets, given by their
// upper bounds.
func (r *Registry) Histogram(name, help string, buckets []float64, labels ...string) *Histogram {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	r.in.MustRegister(v)
	return &Histogram{series[prometheus.Observer]{with: v.WithLabelValues, labels: len(labels)}}
}

// LatencyBuckets are bounds in seconds for calls that take from 100 µs to 10 s.
func LatencyBuckets() []float64 {
	return []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

// series finds the series of label values, and no more than MaxSeries.
type series[T any] struct {
	with   func(values ...string) T
	labels int

	mu   sync.RWMutex
	made map[string]T
}

func (s *series[T]) of(values []string) T {
	if len(values) != s.labels {
		panic(fmt.Sprintf("metrics: %d label values for %d labels", len(values), s.labels))
	}
	key := strings.Join(values, "\xff")
	s.mu.RLock()
	one, ok := s.made[key]
	s.mu.RUnlock()
	if ok {
		return one
	}
	return s.make(key, values)
}

func (s *series[T]) make(key string, values []string) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made == nil {
		s.made = map[string]T{}
	}
	if len(s.made) >= MaxSeries {
		return s.with(others(len(values))...)
	}
	one := s.with(clean(values)...)
	s.made[key] = one
	return one
}

func others(n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = other
	}
	return values
}

// maxLabel bounds a label value.
const maxLabel = 128

// clean makes of any text one that can be a label value.
func clean(values []string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = strings.ToValidUTF8(v[:min(len(v), maxLabel)], "")
	}
	return out
}

// Gauge is a number that goes up and down.
type Gauge struct{ series[prometheus.Gauge] }

// Set sets it.
func (g *Gauge) Set(value float64, labels ...string) { g.of(labels).Set(value) }

// Counter is a number that only grows.
type Counter struct{ series[prometheus.Counter] }

// Add adds n, which must not be negative.
func (c *Counter) Add(n float64, labels ...string) { c.of(labels).Add(n) }

// Histogram is a distribution.
type Histogram struct{ series[prometheus.Observer] }

// Observe counts one quantity.
func (h *Histogram) Observe(value float64, labels ...string) { h.of(labels).Observe(value) }

// Desc describes a metric whose value is read when it is asked for.
type Desc struct {
	Name    string
	Help    string
	Counter bool // it only grows; otherwise it is a gauge
	Labels  []string
}

// Collect describes metrics whose values are read when they are asked for: read
// calls set for each value there is now. What it does not set is not shown. It
// may be called by several at a time, and what it does takes as long as a scrape.
func (r *Registry) Collect(descs []Desc, read func(set func(name string, value float64, labels ...string))) {
	c := &collector{read: read, descs: map[string]*desc{}}
	for _, d := range descs {
		kind := prometheus.GaugeValue
		if d.Counter {
			kind = prometheus.CounterValue
		}
		c.descs[d.Name] = &desc{prometheus: prometheus.NewDesc(d.Name, d.Help, d.Labels, nil), kind: kind, labels: len(d.Labels)}
	}
	r.in.MustRegister(c)
}

type desc struct {
	prometheus *prometheus.Desc
	kind       prometheus.ValueType
	labels     int
}

type collector struct {
	descs map[string]*desc
	read  func(set func(name string, value float64, labels ...string))
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d.prometheus
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	shown := map[string]int{}
	c.read(func(name string, value float64, labels ...string) {
		d := c.descs[name]
		if d == nil || len(labels) != d.labels {
			panic("metrics: " + name + " was not described so")
		}
		if math.IsNaN(value) || shown[name] >= MaxSeries {
			return
		}
		shown[name]++
		out <- prometheus.MustNewConstMetric(d.prometheus, d.kind, value, clean(labels)...)
	})
}
