package main

import (
	"time"

	"chancery/internal/cli"
	"chancery/signer"
)

// repetitionsConfig bounds the signatures that are kept for requests which repeat one by
// its idempotency key.
type repetitionsConfig struct {
	Window       time.Duration `mapstructure:"window"`
	Requests     int           `mapstructure:"requests"`       // of one user
	BytesPerUser int           `mapstructure:"bytes_per_user"` // of these
	Bytes        int           `mapstructure:"bytes"`          // of all users
}

func (r repetitionsConfig) validate() error {
	if r.Window <= 0 {
		return cli.Misconfigured("repetitions.window is %s: more than 0, for example 10m", r.Window)
	}
	for _, limit := range []struct {
		key   string
		value int
	}{{"requests", r.Requests}, {"bytes_per_user", r.BytesPerUser}, {"bytes", r.Bytes}} {
		if limit.value < 1 {
			return cli.Misconfigured("repetitions.%s is %d: at least 1", limit.key, limit.value)
		}
	}
	return nil
}

// apply fills in what the configuration says of repetitions.
func (r repetitionsConfig) apply(c *signer.Config) {
	c.RepeatWindow, c.RepeatRequests = r.Window, r.Requests
	c.RepeatUserBytes, c.RepeatBytes = r.BytesPerUser, r.Bytes
}
