package main

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"chancery/internal/certfile"
	"chancery/internal/observe/observetest"
	"chancery/internal/scripttest"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
)

// sampled returns metrics of which each has a sample.
func sampled() *metrics {
	m := newMetrics()
	m.Refused(tunnel.RoleClient, bridge.ReasonTLS)
	m.Refused(tunnel.RoleClient, bridge.ReasonTLS)
	m.Left(tunnel.RoleClient, time.Second, bridge.ReasonNoServer)
	m.Paired(20*time.Millisecond, time.Minute)
	m.Ended(time.Minute, bridge.ReasonClosed)
	return m
}

func now() certfile.Expiry {
	end := time.Now().Add(36 * time.Hour)
	return certfile.Expiry{Certificate: end, CA: end, CRL: end}
}

func TestMetricsAreDocumented(t *testing.T) {
	registry := sampled().registry(func() bridge.Stats { return bridge.Stats{} }, now)
	observetest.Compare(t, scripttest.Repository(t), registry, "chancery_bridge_", "chancery_build_")
}

func TestMetricsCount(t *testing.T) {
	registry := sampled().registry(func() bridge.Stats {
		return bridge.Stats{Accepted: 9, WaitingServers: 8, BytesUp: 5}
	}, func() certfile.Expiry { return certfile.Expiry{} })
	want := `
# HELP chancery_bridge_bytes_total Bytes that were copied: up, from clients to servers, and down.
# TYPE chancery_bridge_bytes_total counter
chancery_bridge_bytes_total{direction="down"} 0
chancery_bridge_bytes_total{direction="up"} 5
# HELP chancery_bridge_refused_total Connections that never came to wait.
# TYPE chancery_bridge_refused_total counter
chancery_bridge_refused_total{port="client",reason="tls"} 2
# HELP chancery_bridge_waiting_connections Connections that wait for a partner.
# TYPE chancery_bridge_waiting_connections gauge
chancery_bridge_waiting_connections{port="client"} 0
chancery_bridge_waiting_connections{port="server"} 8
`
	err := testutil.GatherAndCompare(registry, strings.NewReader(want),
		"chancery_bridge_bytes_total", "chancery_bridge_refused_total", "chancery_bridge_waiting_connections")
	if err != nil {
		t.Error(err)
	}
}

// TestAlertsSeeTheFirstEvent: what alerts take the increase of begins at 0.
func TestAlertsSeeTheFirstEvent(t *testing.T) {
	registry := newMetrics().registry(func() bridge.Stats { return bridge.Stats{} }, now)
	want := `
# HELP chancery_bridge_waits_ended_total Connections that stopped waiting without a partner.
# TYPE chancery_bridge_waits_ended_total counter
chancery_bridge_waits_ended_total{port="client",reason="no_server"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "chancery_bridge_waits_ended_total"); err != nil {
		t.Error(err)
	}
}
