package main

import (
	"time"

	"chancery/internal/cli"
)

// parseExpiry reads what --expires takes: a date (the first moment of that day,
// UTC, is the end), an RFC 3339 time, or a duration from now. Empty is never.
func parseExpiry(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	expires, err := readExpiry(text, now)
	if err != nil {
		return time.Time{}, cli.Usage("--expires %q: give a date (2027-01-31), a time (2027-01-31T12:00:00Z) or a duration (720h)", text)
	}
	if expires = expires.UTC().Truncate(time.Second); !expires.After(now) {
		return time.Time{}, cli.Usage("--expires %q lies in the past", text)
	}
	return expires, nil
}

func readExpiry(text string, now time.Time) (time.Time, error) {
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	after, err := time.ParseDuration(text)
	return now.Add(after), err
}
