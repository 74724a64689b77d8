package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/internal/listen"
	"chancery/internal/notify"
	"chancery/internal/observe"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
)

// observeConfig is where the bridge shows operators how it is.
type observeConfig struct {
	Listen           string `mapstructure:"listen"` // host:port or unix:/path; empty: nowhere
	UnsafeAnyAddress bool   `mapstructure:"unsafe_any_address"`
}

func (o observeConfig) validate() error {
	if err := observe.Validate(o.Listen, o.UnsafeAnyAddress); err != nil {
		return cli.Misconfigured("observe.listen: %s", err)
	}
	return nil
}

// listen opens the listener; nil where none is configured.
func (o observeConfig) listen() (net.Listener, error) {
	if o.Listen == "" {
		return nil, nil
	}
	listener, err := observe.Listen(o.Listen, o.UnsafeAnyAddress)
	if err != nil {
		return nil, listen.Failed("metrics and health", o.Listen, "observe.listen", err)
	}
	return listener, nil
}

// metrics counts what the bridge's Stats do not.
type metrics struct {
	refused   *prometheus.CounterVec
	waitEnded *prometheus.CounterVec
	waited    *prometheus.HistogramVec
	ended     *prometheus.CounterVec
	lasted    prometheus.Histogram
}

var (
	waitBuckets = []float64{.001, .005, .02, .1, .5, 1, 2, 5, 10, 30, 120, 600, 3600}
	pairBuckets = []float64{.01, .05, .2, 1, 5, 20, 60, 300, 1200, 3600, 14400}
)

func newMetrics() *metrics {
	m := &metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chancery_bridge_refused_total", Help: "Connections that never came to wait.",
		}, []string{"port", "reason"}),
		waitEnded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chancery_bridge_waits_ended_total", Help: "Connections that stopped waiting without a partner.",
		}, []string{"port", "reason"}),
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "chancery_bridge_wait_seconds", Help: "How long connections had waited when they were paired.", Buckets: waitBuckets,
		}, []string{"port"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chancery_bridge_pairs_ended_total", Help: "Pairs that ended.",
		}, []string{"reason"}),
		lasted: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chancery_bridge_pair_seconds", Help: "How long pairs lasted.", Buckets: pairBuckets,
		}),
	}
	// An alert looks at it, and sees no increase where a series begins with its first event.
	m.waitEnded.WithLabelValues(tunnel.RoleClient.String(), string(bridge.ReasonNoServer))
	return m
}

// Refused implements bridge.Observer.
func (m *metrics) Refused(port tunnel.Role, why bridge.Reason) {
	m.refused.WithLabelValues(port.String(), string(why)).Inc()
}

// Left implements bridge.Observer.
func (m *metrics) Left(port tunnel.Role, _ time.Duration, why bridge.Reason) {
	m.waitEnded.WithLabelValues(port.String(), string(why)).Inc()
}

// Paired implements bridge.Observer.
func (m *metrics) Paired(client, server time.Duration) {
	m.waited.WithLabelValues(tunnel.RoleClient.String()).Observe(client.Seconds())
	m.waited.WithLabelValues(tunnel.RoleServer.String()).Observe(server.Seconds())
}

// Ended implements bridge.Observer.
func (m *metrics) Ended(took time.Duration, why bridge.Reason) {
	m.lasted.Observe(took.Seconds())
	m.ended.WithLabelValues(string(why)).Inc()
}

// registry holds all metrics of the bridge.
func (m *metrics) registry(stats func() bridge.Stats, expiry func() certfile.Expiry) *prometheus.Registry {
	version, commit, toolchain := cli.Built()
	registry := observe.NewRegistry(observe.Build{Program: program, Version: version, Commit: commit, Go: toolchain})
	registry.MustRegister(m.refused, m.waitEnded, m.waited, m.ended, m.lasted)
	s := observe.NewSnapshot(stats)
	s.Gauge("chancery_bridge_handshaking_connections", "Connections that have not yet said a valid hello.", func(s bridge.Stats) float64 { return float64(s.Handshaking) })
	s.Gauges("chancery_bridge_waiting_connections", "Connections that wait for a partner.", []string{"port"}, func(s bridge.Stats) []observe.Value {
		return byPort(s.WaitingClients, s.WaitingServers)
	})
	s.Gauge("chancery_bridge_pairs", "Pairs in progress.", func(s bridge.Stats) float64 { return float64(s.Pairs) })
	s.Counter("chancery_bridge_connections_total", "Connections that were accepted.", func(s bridge.Stats) float64 { return float64(s.Accepted) })
	s.Counter("chancery_bridge_pairs_total", "Pairs since the start.", func(s bridge.Stats) float64 { return float64(s.Paired) })
	s.Counters("chancery_bridge_bytes_total", "Bytes that were copied: up, from clients to servers, and down.", []string{"direction"}, func(s bridge.Stats) []observe.Value {
		return []observe.Value{{Number: float64(s.BytesUp), Labels: []string{"up"}}, {Number: float64(s.BytesDown), Labels: []string{"down"}}}
	})
	s.CertificateDays("chancery_bridge_certificate_remaining_days", func(bridge.Stats) certfile.Expiry { return expiry() })
	registry.MustRegister(s)
	return registry
}

func byPort(clients, servers int) []observe.Value {
	return []observe.Value{
		{Number: float64(clients), Labels: []string{tunnel.RoleClient.String()}},
		{Number: float64(servers), Labels: []string{tunnel.RoleServer.String()}},
	}
}

// shown is the bridge that operators look at.
type shown struct {
	bridge       *bridge.Bridge
	certificates *certfile.Live
	log          *slog.Logger
}

// show tells systemd how the bridge is, and whoever asks on the listener, if there is one. It
// goes on while the bridge drains after ctx, until end is called.
func (m *metrics) show(ctx context.Context, listener net.Listener, what shown) (end func()) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	manager := notify.New(what.log)
	if listener != nil {
		what.log.Info("showing metrics and health", "address", listener.Addr().String())
		go func() {
			if err := m.page(ctx, what).Serve(life, listener); err != nil {
				what.log.Error("metrics and health are not shown any more", "error", err)
			}
		}()
	}
	manager.Ready("clients and servers can connect")
	stop := manager.StopWith(ctx, "waiting for sessions in progress to end")
	go manager.Watch(life, what.bridge.Alive)
	return func() { stop(); cancel() }
}

// page is what the bridge shows. Once serving is done, it is not ready any more: clients should go elsewhere.
func (m *metrics) page(serving context.Context, what shown) observe.Page {
	expiry := func() certfile.Expiry { return what.certificates.Identity().Expiry() }
	return observe.Page{
		Registry: m.registry(what.bridge.Stats, expiry), Log: what.log,
		Alive: []observe.Check{{Name: "loops", Probe: func(context.Context) error { return what.bridge.Alive() }}},
		Ready: []observe.Check{
			{Name: "accepting", Probe: func(context.Context) error {
				if serving.Err() != nil {
					return errors.New("the bridge is stopping")
				}
				return nil
			}},
			{Name: "servers", Probe: func(context.Context) error {
				if s := what.bridge.Stats(); s.WaitingServers == 0 && s.Pairs == 0 {
					return errors.New("no signing server waits")
				}
				return nil
			}},
		},
	}
}
