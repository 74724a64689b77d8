package main

import (
	"time"

	"chancery/access"
	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/internal/observe"
	"chancery/seal"
	"chancery/signer"
	"chancery/signer/queue"
	"chancery/token/tpm"
)

// sessionsConfig bounds what clients can make the daemon do.
type sessionsConfig struct {
	Maximum          int           `mapstructure:"maximum"`           // sessions at once
	MaximumPerUser   int           `mapstructure:"maximum_per_user"`  // of these, of one user
	Requests         int           `mapstructure:"requests"`          // in flight, of one session
	RequestsTotal    int           `mapstructure:"requests_total"`    // in flight, of all
	BatchConcurrency int           `mapstructure:"batch_concurrency"` // signatures of one batch asked from the token at once
	Derivations      int           `mapstructure:"unlocks"`           // passphrases being checked at once; each takes 64 MiB
	RequestTimeout   time.Duration `mapstructure:"request_timeout"`
	IdleTimeout      time.Duration `mapstructure:"idle_timeout"`
	DrainTimeout     time.Duration `mapstructure:"drain_timeout"`
	FailurePause     time.Duration `mapstructure:"failure_pause"`   // after a wrong passphrase
	FailureMaximum   time.Duration `mapstructure:"failure_maximum"` // after many for one key
	Lease            time.Duration `mapstructure:"lease"`           // of an unlock; 0: as long as the session
	RequestsPerUser  int           `mapstructure:"requests_per_user"`
	RequestRate      int           `mapstructure:"request_rate"` // of one user, a second
}

func defaultConfig() *config {
	return &config{
		Bridge: bridgeConfig{IdleConnections: 8, HandshakeTimeout: 15 * time.Second},
		TLS: tlsConfig{
			CACertificate: "/etc/chancery/ca.crt",
			Certificate:   "/etc/chancery/server.crt",
			PrivateKey:    "/etc/chancery/server.key",
			CRLFiles:      []string{},
			CRLExpired:    string(certfile.WarnExpired),
		},
		State: stateConfig{Directory: "/var/lib/chancery"},
		Audit: auditConfig{SegmentBytes: 64 << 20},
		Tokens: tokensConfig{
			Modules: []string{}, TPM: tpm.DefaultDevice, Network: []string{}, Writable: []string{}, CallTimeout: 10 * time.Second, OpenTimeout: 30 * time.Second,
			Queue: queue.DefaultMaxWaiting, QueueUser: queue.DefaultMaxWaitingPerUser,
		},
		Sessions: sessionsConfig{
			Maximum: 256, MaximumPerUser: 64, Requests: 256, RequestsTotal: 4096, BatchConcurrency: 16, Derivations: 2,
			RequestTimeout: 30 * time.Second, IdleTimeout: time.Hour, DrainTimeout: 15 * time.Second, FailurePause: time.Second,
			FailureMaximum: 5 * time.Minute, Lease: 24 * time.Hour, RequestsPerUser: 1024, RequestRate: 20000,
		},
		Repetitions: repetitionsConfig{Window: 10 * time.Minute, Requests: 1 << 16, BytesPerUser: 32 << 20, Bytes: 128 << 20},
		Passphrases: passphraseConfig{MinimumLength: access.DefaultMinPassphrase},
		Observe:     observeConfig{CanaryDeadline: observe.DefaultDeadline},
		Seal:        sealConfig{Deadline: seal.DefaultDeadline},
		Log:         cli.Logging{Level: "info", Format: "text"},
	}
}

func (s sessionsConfig) validate() error {
	for _, limit := range []struct {
		key   string
		value int
	}{
		{"maximum", s.Maximum}, {"maximum_per_user", s.MaximumPerUser}, {"requests", s.Requests},
		{"requests_total", s.RequestsTotal}, {"batch_concurrency", s.BatchConcurrency}, {"unlocks", s.Derivations},
		{"requests_per_user", s.RequestsPerUser}, {"request_rate", s.RequestRate},
	} {
		if limit.value < 1 {
			return cli.Misconfigured("sessions.%s is %d: at least 1", limit.key, limit.value)
		}
	}
	for _, timeout := range []struct {
		key   string
		value time.Duration
	}{
		{"request_timeout", s.RequestTimeout}, {"idle_timeout", s.IdleTimeout},
		{"drain_timeout", s.DrainTimeout}, {"failure_pause", s.FailurePause}, {"failure_maximum", s.FailureMaximum},
	} {
		if timeout.value <= 0 {
			return cli.Misconfigured("sessions.%s is %s: more than 0, for example 30s", timeout.key, timeout.value)
		}
	}
	if s.Lease < 0 {
		return cli.Misconfigured("sessions.lease is %s: 0 for as long as a session, or how long an unlock lasts", s.Lease)
	}
	return nil
}

// apply fills in what the configuration says of sessions.
func (s sessionsConfig) apply(c *signer.Config) {
	c.MaxSessions, c.MaxSessionsPerUser = s.Maximum, s.MaximumPerUser
	c.SessionRequests, c.ServerRequests = s.Requests, s.RequestsTotal
	c.BatchConcurrency, c.MaxDerivations = s.BatchConcurrency, s.Derivations
	c.RequestTimeout, c.IdleTimeout = s.RequestTimeout, s.IdleTimeout
	c.DrainTimeout, c.Lease = s.DrainTimeout, s.Lease
	c.FailurePause, c.FailureMax = s.FailurePause, s.FailureMaximum
	c.UserRequests, c.UserRate = s.RequestsPerUser, s.RequestRate
}
