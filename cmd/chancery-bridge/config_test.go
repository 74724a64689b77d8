package main

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chancery/internal/cli"
	"chancery/internal/scripttest"
)

func TestExampleShowsEveryDefault(t *testing.T) {
	read := &config{}
	if _, err := cli.Load(cli.Source{File: filepath.Join(scripttest.Repository(t), "packaging", "examples", "bridge.toml")}, read); err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Servers = []string{"signing.example.com"}
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("packaging/examples/bridge.toml differs from the defaults (-want +got):\n%s", diff)
	}
}
