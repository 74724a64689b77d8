package observe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"chancery/internal/certfile"
)

// Build says what runs, for chancery_build_info.
type Build struct {
	Program, Version, Commit, Go string
}

// NewRegistry returns a registry with the metrics that both programs have: of
// the Go runtime (go_*), of the process (process_*), and chancery_build_info.
func NewRegistry(build Build) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "chancery_build_info", Help: "Always 1; the labels say what runs.",
			ConstLabels: prometheus.Labels{"program": build.Program, "version": build.Version, "commit": build.Commit, "go": build.Go},
		}, func() float64 { return 1 }),
	)
	return registry
}

// Snapshot collects metrics that are read off one snapshot of a program's state,
// so that all of a scrape belong to the same moment.
type Snapshot[S any] struct {
	take    func() S
	metrics []reading[S]
}

type reading[S any] struct {
	description *prometheus.Desc
	kind        prometheus.ValueType
	values      func(S) []Value
}

// Value is one sample, with the values of its metric's labels.
type Value struct {
	Number float64
	Labels []string
}

// NewSnapshot collects from what take returns; it is called once a scrape, and may run beside itself.
func NewSnapshot[S any](take func() S) *Snapshot[S] { return &Snapshot[S]{take: take} }

// Gauge adds a metric without labels that rises and falls.
func (s *Snapshot[S]) Gauge(name, help string, read func(S) float64) {
	s.add(name, help, prometheus.GaugeValue, nil, func(state S) []Value { return []Value{{Number: read(state)}} })
}

// Counter adds a metric without labels that only rises.
func (s *Snapshot[S]) Counter(name, help string, read func(S) float64) {
	s.add(name, help, prometheus.CounterValue, nil, func(state S) []Value { return []Value{{Number: read(state)}} })
}

// Gauges adds a metric with labels, of which there must be a bounded number of values.
func (s *Snapshot[S]) Gauges(name, help string, labels []string, read func(S) []Value) {
	s.add(name, help, prometheus.GaugeValue, labels, read)
}

// Counters adds a metric with labels that only rises.
func (s *Snapshot[S]) Counters(name, help string, labels []string, read func(S) []Value) {
	s.add(name, help, prometheus.CounterValue, labels, read)
}

func (s *Snapshot[S]) add(name, help string, kind prometheus.ValueType, labels []string, values func(S) []Value) {
	s.metrics = append(s.metrics, reading[S]{prometheus.NewDesc(name, help, labels, nil), kind, values})
}

// CertificateDays adds how many days are left of the program's certificate, of its CA and
// of the revocation lists, where there are any; negative ones are over.
func (s *Snapshot[S]) CertificateDays(name string, read func(S) certfile.Expiry) {
	s.Gauges(name, "Days until the certificate, its CA or the CRL runs out.", []string{"of"}, func(state S) (values []Value) {
		expiry, now := read(state), time.Now()
		for _, end := range []struct {
			of string
			at time.Time
		}{{"certificate", expiry.Certificate}, {"ca", expiry.CA}, {"crl", expiry.CRL}} {
			if !end.at.IsZero() {
				values = append(values, Value{end.at.Sub(now).Hours() / 24, []string{end.of}})
			}
		}
		return values
	})
}

// Describe implements prometheus.Collector.
func (s *Snapshot[S]) Describe(descriptions chan<- *prometheus.Desc) {
	for _, m := range s.metrics {
		descriptions <- m.description
	}
}

// Collect implements prometheus.Collector.
func (s *Snapshot[S]) Collect(metrics chan<- prometheus.Metric) {
	state := s.take()
	for _, m := range s.metrics {
		for _, value := range m.values(state) {
			metrics <- prometheus.MustNewConstMetric(m.description, m.kind, value.Number, value.Labels...)
		}
	}
}
