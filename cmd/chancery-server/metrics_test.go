package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"chancery/internal/certfile"
	"chancery/internal/observe/observetest"
	"chancery/signer"
	"chancery/token"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// sampled returns metrics of which each has a sample.
func sampled() *metrics {
	m := newMetrics()
	m.Answered("sign", "", time.Millisecond)
	m.Answered("unlock", wire.CodeWrongPassphrase, time.Second)
	m.Signed(token.P256, wire.SchemeDefault, time.Millisecond, nil)
	m.Signed(token.RSA2048, wire.SchemePSS, time.Second, errors.New("gone"))
	m.Derived(0, time.Second)
	m.Refused(signer.RefusedUnknownUser)
	m.Repeated(signer.RepetitionAnswered)
	m.append.Observe(1)
	m.committed(3, time.Millisecond, nil)
	m.committed(3, time.Millisecond, errors.New("full"))
	m.sang(time.Second, nil)
	return m
}

func someState() state {
	now := time.Now()
	return state{
		now: now, expiry: certfile.Expiry{Certificate: now, CA: now, CRL: now},
		legs: tunnel.Stats{Waiting: 7, Failed: 2},
		signer: signer.Status{
			Store:  signer.StoreStatus{Good: now.Add(-4 * time.Second)},
			Tokens: []signer.TokenStatus{{Name: "hsm", State: signer.StateReady, Refused: []string{"old"}}},
		},
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	observetest.Compare(t, filepath.Join("..", ".."), sampled().registry(someState), "chancery_server_", "chancery_build_")
}

func TestMetricsCount(t *testing.T) {
	want := `
# HELP chancery_server_audit_failures_total Batches of audit records that could not be written.
# TYPE chancery_server_audit_failures_total counter
chancery_server_audit_failures_total 1
# HELP chancery_server_legs Connections to the bridge that are not yet sessions.
# TYPE chancery_server_legs gauge
chancery_server_legs{state="connecting"} 0
chancery_server_legs{state="handshaking"} 0
chancery_server_legs{state="waiting"} 7
# HELP chancery_server_repetitions_total Requests under an idempotency key that was known.
# TYPE chancery_server_repetitions_total counter
chancery_server_repetitions_total{outcome="answered"} 1
` + noInternalErrors + `chancery_server_requests_total{code="ok",kind="sign"} 1
chancery_server_requests_total{code="wrong_passphrase",kind="unlock"} 1
# HELP chancery_server_signatures_total Signatures asked from tokens, each of a batch by itself.
# TYPE chancery_server_signatures_total counter
chancery_server_signatures_total{algorithm="p256",outcome="ok",scheme="default"} 1
chancery_server_signatures_total{algorithm="rsa2048",outcome="failed",scheme="pss"} 1
# HELP chancery_server_store_age_seconds Since the store was last read without an error: as old is the state in force.
# TYPE chancery_server_store_age_seconds gauge
chancery_server_store_age_seconds 4
# HELP chancery_server_token_state 1 for the state that a registered token is in, 0 for the others.
# TYPE chancery_server_token_state gauge
chancery_server_token_state{state="absent",token="hsm"} 0
chancery_server_token_state{state="opening",token="hsm"} 0
chancery_server_token_state{state="ready",token="hsm"} 1
`
	var names []string
	for line := range strings.Lines(want) {
		if words := strings.Fields(line); len(words) > 3 && words[1] == "TYPE" {
			names = append(names, words[2])
		}
	}
	if err := testutil.GatherAndCompare(sampled().registry(someState), strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

// noInternalErrors is how the counter of requests begins.
const noInternalErrors = `# HELP chancery_server_requests_total Requests by kind and the code of the answer.
# TYPE chancery_server_requests_total counter
chancery_server_requests_total{code="internal",kind="get_key"} 0
chancery_server_requests_total{code="internal",kind="list_keys"} 0
chancery_server_requests_total{code="internal",kind="sign"} 0
chancery_server_requests_total{code="internal",kind="sign_all"} 0
chancery_server_requests_total{code="internal",kind="unlock"} 0
chancery_server_requests_total{code="internal",kind="unsupported"} 0
chancery_server_requests_total{code="internal",kind="who_am_i"} 0
`

// TestAlertsSeeTheFirstEvent: what alerts take the increase of begins at 0.
func TestAlertsSeeTheFirstEvent(t *testing.T) {
	want := `
# HELP chancery_server_canary_total Signatures of the canary key.
# TYPE chancery_server_canary_total counter
chancery_server_canary_total{outcome="failed"} 0
chancery_server_canary_total{outcome="ok"} 0
` + noInternalErrors + `chancery_server_requests_total{code="wrong_passphrase",kind="unlock"} 0
`
	err := testutil.GatherAndCompare(newMetrics().registry(someState), strings.NewReader(want), "chancery_server_canary_total", "chancery_server_requests_total")
	if err != nil {
		t.Error(err)
	}
}

// BenchmarkObserver is what one signature's metrics cost.
func BenchmarkObserver(b *testing.B) {
	m := newMetrics()
	b.ReportAllocs()
	for b.Loop() {
		m.Signed(token.P256, wire.SchemeDefault, time.Millisecond, nil)
		m.Answered("sign", "", time.Millisecond)
	}
}
