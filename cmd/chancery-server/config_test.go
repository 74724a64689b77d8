package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"chancery/internal/cli"
	"chancery/internal/scripttest"
)

func TestExampleShowsEveryDefault(t *testing.T) {
	read := &config{}
	if _, err := cli.Load(cli.Source{File: filepath.Join(scripttest.Repository(t), "packaging", "examples", "server.toml")}, read); err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Bridge.Address = "bridge.example.com:44333"
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("packaging/examples/server.toml differs from the defaults (-want +got):\n%s", diff)
	}
	if err := read.validateDaemon(); err != nil {
		t.Error(err)
	}
}

func TestParseExpiry(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 500, time.UTC)
	for text, want := range map[string]time.Time{
		"":                          {},
		"2027-01-31":                time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC),
		"2027-01-31T12:00:00+02:00": time.Date(2027, 1, 31, 10, 0, 0, 0, time.UTC),
		"720h":                      time.Date(2026, 12, 23, 12, 0, 0, 0, time.UTC),
	} {
		got, err := parseExpiry(text, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"tomorrow", "2026-11-22", "-1h", "0s", "400ms", "2027-13-01", "30d"} {
		if got, err := parseExpiry(text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestConfigurationOfTheDaemonIsForItsUser(t *testing.T) {
	var told *cli.Error
	refused := &cli.Error{Exit: cli.ExitUsage, Code: "config_invalid", Message: "m", Cause: fs.ErrPermission}
	if err := adviseUser(refused); !errors.As(err, &told) || told.Hint != asDaemon || told.Code != "config_invalid" {
		t.Errorf("without permission: %+v", told)
	}
	if err := adviseUser(cli.Misconfigured("m")); !errors.As(err, &told) || told.Hint != "" {
		t.Errorf("for another reason: %+v", told)
	}
}
