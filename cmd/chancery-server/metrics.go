package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chancery/audit"
	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/internal/observe"
	"chancery/signer"
	"chancery/token"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// metrics counts what no status tells.
type metrics struct {
	requests     *prometheus.CounterVec
	answered     *prometheus.HistogramVec
	signatures   *prometheus.CounterVec
	inToken      *prometheus.HistogramVec
	derivation   prometheus.Histogram
	derivingWait prometheus.Histogram
	refused      *prometheus.CounterVec
	repetitions  *prometheus.CounterVec
	append       prometheus.Histogram
	batch        prometheus.Histogram
	batchRecords prometheus.Histogram
	auditFailed  prometheus.Counter
	canaries     *prometheus.CounterVec
	canaryTook   prometheus.Histogram

	answers *series[answered, answerSeries]
	signed  *series[signature, signatureSeries]
}

// answered and signature are the labels of what is counted on the path of every request.
type answered struct {
	kind string
	code wire.Code
}

type answerSeries struct {
	count prometheus.Counter
	took  prometheus.Observer
}

type signature struct {
	algorithm token.Algorithm
	scheme    wire.Scheme
	failed    bool
}

type signatureSeries answerSeries

var (
	// From a signature in software to one that waits for its deadline.
	requestBuckets = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}
	batchBuckets   = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}
)

// What labels say of what went well or not. The former is the code of requests that did.
const (
	succeeded = "ok"
	failed    = "failed"
)

func newMetrics() *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: requestBuckets})
	}
	secondsBy := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: requestBuckets}, labels)
	}
	m := &metrics{
		requests:     counters("chancery_server_requests_total", "Requests by kind and the code of the answer.", "kind", "code"),
		answered:     secondsBy("chancery_server_request_seconds", "From a request's arrival to its answer.", "kind"),
		signatures:   counters("chancery_server_signatures_total", "Signatures asked from tokens, each of a batch by itself.", "algorithm", "scheme", "outcome"),
		inToken:      secondsBy("chancery_server_token_seconds", "What one signature took in the token.", "algorithm"),
		derivation:   seconds("chancery_server_derivation_seconds", "What one passphrase's Argon2id took."),
		derivingWait: seconds("chancery_server_derivation_wait_seconds", "How long passphrases waited for a place among those being derived."),
		refused:      counters("chancery_server_sessions_refused_total", "Sessions that were closed without being served.", "reason"),
		repetitions:  counters("chancery_server_repetitions_total", "Requests under an idempotency key that was known.", "outcome"),
		append:       seconds("chancery_server_audit_append_seconds", "From handing a record to the audit log until it was durable."),
		batch:        seconds("chancery_server_audit_batch_seconds", "What writing one batch and making it durable took."),
		batchRecords: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chancery_server_audit_batch_records", Help: "Records that shared one batch.", Buckets: batchBuckets,
		}),
		auditFailed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chancery_server_audit_failures_total", Help: "Batches of audit records that could not be written.",
		}),
		canaries:   counters("chancery_server_canary_total", "Signatures of the canary key.", "outcome"),
		canaryTook: seconds("chancery_server_canary_seconds", "What one signature of the canary took, with any unlock."),
	}
	m.answers, m.signed = newSeries(m.answerSeries), newSeries(m.signatureSeries)
	m.begin()
	return m
}

// requestKinds are the values of the label kind.
var requestKinds = []string{
	(*wire.WhoAmI)(nil).Name(), (*wire.ListKeys)(nil).Name(), (*wire.GetKey)(nil).Name(), (*wire.Unlock)(nil).Name(),
	(*wire.Sign)(nil).Name(), (*wire.SignAll)(nil).Name(), signer.KindUnsupported,
}

// begin has what alerts look at be there from the start, at 0: an increase is not seen where a series begins with its first event.
func (m *metrics) begin() {
	for _, kind := range requestKinds {
		m.requests.WithLabelValues(kind, string(wire.CodeInternal))
	}
	m.requests.WithLabelValues((*wire.Unlock)(nil).Name(), string(wire.CodeWrongPassphrase))
	m.canaries.WithLabelValues(succeeded)
	m.canaries.WithLabelValues(failed)
}

func (m *metrics) answerSeries(a answered) answerSeries {
	code := string(a.code)
	if code == "" {
		code = succeeded
	}
	return answerSeries{m.requests.WithLabelValues(a.kind, code), m.answered.WithLabelValues(a.kind)}
}

func (m *metrics) signatureSeries(s signature) signatureSeries {
	scheme, end := string(s.scheme), succeeded
	if s.scheme == wire.SchemeDefault {
		scheme = "default"
	}
	if s.failed {
		end = failed
	}
	return signatureSeries{m.signatures.WithLabelValues(string(s.algorithm), scheme, end), m.inToken.WithLabelValues(string(s.algorithm))}
}

// Answered implements signer.Observer.
func (m *metrics) Answered(kind string, code wire.Code, took time.Duration) {
	s := m.answers.of(answered{kind, code})
	s.count.Inc()
	s.took.Observe(took.Seconds())
}

// Signed implements signer.Observer.
func (m *metrics) Signed(algorithm token.Algorithm, scheme wire.Scheme, took time.Duration, err error) {
	s := m.signed.of(signature{algorithm, scheme, err != nil})
	s.count.Inc()
	s.took.Observe(took.Seconds())
}

// Derived implements signer.Observer.
func (m *metrics) Derived(waited, took time.Duration) {
	m.derivingWait.Observe(waited.Seconds())
	m.derivation.Observe(took.Seconds())
}

// Refused implements signer.Observer.
func (m *metrics) Refused(reason signer.Refusal) { m.refused.WithLabelValues(string(reason)).Inc() }

// Repeated implements signer.RepetitionObserver.
func (m *metrics) Repeated(what signer.Repetition) { m.repetitions.WithLabelValues(string(what)).Inc() }

// committed is for audit.Config.
func (m *metrics) committed(records int, took time.Duration, err error) {
	if err != nil {
		m.auditFailed.Inc()
		return
	}
	m.batch.Observe(took.Seconds())
	m.batchRecords.Observe(float64(records))
}

// sang counts one run of the canary.
func (m *metrics) sang(took time.Duration, err error) {
	m.canaries.WithLabelValues(outcome(err)).Inc()
	m.canaryTook.Observe(took.Seconds())
}

func outcome(err error) string {
	if err != nil {
		return failed
	}
	return succeeded
}

// timedAudit measures how long records take to be durable.
type timedAudit struct {
	*audit.Log
	took prometheus.Observer
}

// Append implements signer.AuditLog.
func (t timedAudit) Append(ctx context.Context, records ...audit.Record) (audit.Position, error) {
	began := time.Now()
	position, err := t.Log.Append(ctx, records...)
	t.took.Observe(time.Since(began).Seconds())
	return position, err
}

// state is one moment of the daemon.
type state struct {
	signer signer.Status
	legs   tunnel.Stats
	expiry certfile.Expiry
	now    time.Time
}

// registry holds all metrics of the server.
func (m *metrics) registry(take func() state) *prometheus.Registry {
	version, commit, toolchain := cli.Built()
	registry := observe.NewRegistry(observe.Build{Program: program, Version: version, Commit: commit, Go: toolchain})
	registry.MustRegister(m.requests, m.answered, m.signatures, m.inToken, m.derivation, m.derivingWait, m.refused, m.repetitions,
		m.append, m.batch, m.batchRecords, m.auditFailed, m.canaries, m.canaryTook)
	s := observe.NewSnapshot(take)
	addWork(s)
	addTokens(s)
	addQueues(s)
	addLegs(s)
	s.Gauge("chancery_server_store_revision", "Revision of the store's state in force.", func(s state) float64 { return float64(s.signer.Revision) })
	s.Gauge("chancery_server_store_age_seconds", "Since the store was last read without an error: as old is the state in force.", func(s state) float64 {
		if s.signer.Store.Good.IsZero() {
			return 0
		}
		return s.now.Sub(s.signer.Store.Good).Seconds()
	})
	s.CertificateDays("chancery_server_certificate_remaining_days", func(s state) certfile.Expiry { return s.expiry })
	registry.MustRegister(s)
	return registry
}

func addWork(s *observe.Snapshot[state]) {
	s.Gauge("chancery_server_sessions", "Open sessions.", func(s state) float64 { return float64(s.signer.Sessions) })
	s.Gauge("chancery_server_requests_in_flight", "Requests being served.", func(s state) float64 { return float64(s.signer.InFlight) })
	s.Gauge("chancery_server_requests_queued", "Requests that were read and wait for room among those in flight.", func(s state) float64 { return float64(s.signer.Queued) })
	s.Gauge("chancery_server_signatures_in_token", "Signatures asked from tokens and not yet made.", func(s state) float64 { return float64(s.signer.Signing) })
	s.Gauges("chancery_server_derivations", "Passphrases being turned into access keys.", []string{"state"}, func(s state) []observe.Value {
		return []observe.Value{
			{Number: float64(s.signer.Derivations.Running), Labels: []string{"running"}},
			{Number: float64(s.signer.Derivations.Waiting), Labels: []string{"waiting"}},
		}
	})
	s.Gauge("chancery_server_audit_writable", "1 unless the last write of the audit log failed, and nothing is signed.", func(s state) float64 { return float64(number(s.signer.Audit == "")) })
}

func addTokens(s *observe.Snapshot[state]) {
	s.Gauges("chancery_server_token_state", "1 for the state that a registered token is in, 0 for the others.", []string{"token", "state"}, func(s state) (values []observe.Value) {
		for _, t := range s.signer.Tokens {
			for _, name := range []string{signer.StateOpening, signer.StateReady, signer.StateAbsent} {
				values = append(values, observe.Value{Number: float64(number(t.State == name)), Labels: []string{t.Name, name}})
			}
		}
		return values
	})
	s.Gauges("chancery_server_token_refused_keys", "Keys whose public half on the token is not the registered one.", []string{"token"}, func(s state) (values []observe.Value) {
		for _, t := range s.signer.Tokens {
			values = append(values, observe.Value{Number: float64(len(t.Refused)), Labels: []string{t.Name}})
		}
		return values
	})
}

func addQueues(s *observe.Snapshot[state]) {
	perToken := func(of func(signer.TokenStatus) float64) func(state) []observe.Value {
		return func(s state) (values []observe.Value) {
			for _, t := range s.signer.Tokens {
				values = append(values, observe.Value{Number: of(t), Labels: []string{t.Name}})
			}
			return values
		}
	}
	s.Gauges("chancery_server_token_queue", "Requests to sign that wait for their turn at a token.", []string{"token"},
		perToken(func(t signer.TokenStatus) float64 { return float64(t.Queue.Waiting) }))
	s.Gauges("chancery_server_token_queue_oldest_seconds", "How long the request has waited that waits longest for a token.", []string{"token"},
		perToken(func(t signer.TokenStatus) float64 { return t.Queue.Oldest.Seconds() }))
	s.Gauges("chancery_server_token_queue_refused", "Requests since the start that were sent away because too many waited for a token.", []string{"token"},
		perToken(func(t signer.TokenStatus) float64 { return float64(t.Queue.Refused) }))
	s.Gauges("chancery_server_token_openings", "How often a token was opened since the start; each time after the first, it had failed or been reloaded.", []string{"token"},
		perToken(func(t signer.TokenStatus) float64 { return float64(t.Opened) }))
}

func addLegs(s *observe.Snapshot[state]) {
	s.Gauges("chancery_server_legs", "Connections to the bridge that are not yet sessions.", []string{"state"}, func(s state) []observe.Value {
		return []observe.Value{
			{Number: float64(s.legs.Waiting), Labels: []string{"waiting"}},
			{Number: float64(s.legs.Connecting), Labels: []string{"connecting"}},
			{Number: float64(s.legs.Handshaking), Labels: []string{"handshaking"}},
		}
	})
	s.Gauge("chancery_server_oldest_leg_seconds", "How long the oldest connection has waited at the bridge; 0 without any.", func(s state) float64 {
		if s.legs.WaitingSince.IsZero() {
			return 0
		}
		return s.now.Sub(s.legs.WaitingSince).Seconds()
	})
	s.Counter("chancery_server_sessions_total", "Sessions since the start, those refused among them.", func(s state) float64 { return float64(s.legs.Accepted) })
	s.Counter("chancery_server_handshakes_refused_total", "Inner handshakes with clients that failed.", func(s state) float64 { return float64(s.legs.Refused) })
	s.Counter("chancery_server_bridge_failures_total", "Tries to wait at the bridge that failed, and waits that broke off.", func(s state) float64 { return float64(s.legs.Failed) })
}
