package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chancery/internal/cli"
	"chancery/internal/scripttest"
)

func TestExampleShowsEveryDefault(t *testing.T) {
	read := &config{}
	file := filepath.Join(scripttest.Repository(t), "packaging", "examples", "client.toml")
	if _, err := cli.Load(cli.Source{File: file}, read); err != nil {
		t.Fatal(err)
	}
	if err := read.validate(); err != nil {
		t.Error(err)
	}
	want := defaultConfig()
	want.Bridge.Address, want.Server.Hostname = "bridge.example.com:44334", "signing.example.com"
	want.Keys["release"] = keyConfig{
		Name: "release", Handle: "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08",
		PassphraseCredential: "release-passphrase",
	}
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("packaging/examples/client.toml differs from the defaults (-want +got):\n%s", diff)
	}
}

// TestTheBridgeCannotPassAsTheServer gives both the same name, in all ways that a certificate would fit.
func TestTheBridgeCannotPassAsTheServer(t *testing.T) {
	for _, c := range []struct {
		address, bridge, server string
		refused                 bool
	}{
		{"sign.example.com:44334", "", "sign.example.com", true},
		{"sign.example.com:44334", "", "Sign.Example.COM.", true},
		{"192.0.2.1:44334", "sign.example.com", "sign.example.com", true},
		{"", "sign.example.com", "sign.example.com", true},
		{"[2001:db8::1]:44334", "", "2001:DB8:0::1", true},
		{"127.0.0.1:44334", "", "::ffff:127.0.0.1", true},
		{"sign.example.com:44334", "bridge.example.com", "sign.example.com", false},
		{"bridge.example.com:44334", "", "sign.example.com", false},
		{"", "", "", false},
	} {
		config := defaultConfig()
		config.Bridge.Address, config.Bridge.Hostname, config.Server.Hostname = c.address, c.bridge, c.server
		err := config.validate()
		var told *cli.Error
		if c.refused && (!errors.As(err, &told) || told.Code != "config_invalid") || !c.refused && err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestKeyTablesAreFoundByNameAndInAnyCase(t *testing.T) {
	c := &config{Keys: map[string]keyConfig{
		"release": {Handle: strings.Repeat("AA", 32)},
		"dotted":  {Name: "kernel.org", Handle: strings.Repeat("BB", 32)},
	}}
	for name, want := range map[string]string{
		"release": "AA", "Release": "AA", "kernel.org": "BB", "dotted": "", "other": "", "Kernel.org": "",
	} {
		if got := c.key(name).Handle; !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%s: %.2s", name, got)
		}
	}
}

func TestTwoTablesForOneKeyAreRefused(t *testing.T) {
	handle := strings.Repeat("AA", 32)
	for name, c := range map[string]struct {
		keys    map[string]keyConfig
		refused bool
	}{
		"one name twice":              {map[string]keyConfig{"a": {Name: "release", Handle: handle}, "b": {Name: "release"}}, true},
		"a name and a table":          {map[string]keyConfig{"release": {Handle: handle}, "b": {Name: "release"}}, true},
		"a table in another case":     {map[string]keyConfig{"release": {Handle: handle}, "b": {Name: "Release"}}, true},
		"two names":                   {map[string]keyConfig{"a": {Name: "release"}, "b": {Name: "Release"}}, false},
		"a table called like another": {map[string]keyConfig{"release": {Name: "other"}, "b": {Name: "release"}}, false},
	} {
		config := defaultConfig()
		config.Keys = c.keys
		err := config.validate()
		var told *cli.Error
		if c.refused && (!errors.As(err, &told) || told.Code != "config_invalid") || !c.refused && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
