package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

type sample struct {
	Name   string   `mapstructure:"name"`
	Names  []string `mapstructure:"names"`
	Limits struct {
		Wait time.Duration `mapstructure:"wait"`
		Many int           `mapstructure:"many"`
	} `mapstructure:"limits"`
}

func defaults() *sample {
	s := &sample{Name: "default", Names: []string{}}
	s.Limits.Wait = 15 * time.Second
	s.Limits.Many = 3
	return s
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFileOverridesDefaultsAndEnvironmentOverridesFile(t *testing.T) {
	t.Setenv("CHANCERY_TEST_LIMITS_MANY", "9")
	t.Setenv("CHANCERY_TEST_NAMES", "a,b")
	config := defaults()
	file := write(t, "name = 'x'\n[limits]\nmany = 5\n")
	if _, err := Load(Source{File: file, EnvPrefix: "CHANCERY_TEST"}, config); err != nil {
		t.Fatal(err)
	}
	if config.Name != "x" || config.Limits.Many != 9 || config.Limits.Wait != 15*time.Second || len(config.Names) != 2 {
		t.Errorf("got %+v", config)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"unknown key":        "nam = 'x'\n",
		"unknown nested key": "[limits]\nmuch = 1\n",
		"unknown table":      "[limit]\nmany = 1\n",
		"wrong type":         "[limits]\nmany = 'lots'\n",
		"bad duration":       "[limits]\nwait = 'soon'\n",
		"not TOML":           "name = \n",
	} {
		_, err := Load(Source{File: write(t, text), EnvPrefix: "CHANCERY_TEST"}, defaults())
		var told *Error
		if !errors.As(err, &told) || told.Code != "config_invalid" || told.Exit != ExitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := Load(Source{File: "no/such/file"}, defaults())
	var told *Error
	if !errors.As(err, &told) || told.Code != "config_missing" {
		t.Errorf("missing file: %v", err)
	}
}

func TestShownConfigurationLoadsAgain(t *testing.T) {
	var shown bytes.Buffer
	if err := showConfig(&shown, defaults(), ""); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(shown.String(), "wait = '15s'") {
		t.Errorf("durations unreadable:\n%s", &shown)
	}
	config := &sample{}
	if _, err := Load(Source{File: write(t, shown.String())}, config); err != nil {
		t.Fatalf("%v in:\n%s", err, &shown)
	}
	if config.Limits.Wait != 15*time.Second || config.Name != "default" {
		t.Errorf("got %+v", config)
	}
}

func TestSecretSources(t *testing.T) {
	path := write(t, "s3cret\n")
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
	for name, test := range map[string]struct {
		secret Secret
		want   string
		fails  bool
	}{
		"file":              {Secret{What: "PIN", File: path, Descriptor: -1}, "s3cret", false},
		"credential":        {Secret{What: "PIN", Credential: filepath.Base(path), Descriptor: -1}, "s3cret", false},
		"credential escape": {Secret{What: "PIN", Credential: "../x", Descriptor: -1}, "", true},
		"two sources":       {Secret{What: "PIN", File: path, Credential: "x", Descriptor: -1}, "", true},
		"missing file":      {Secret{What: "PIN", File: path + "x", Descriptor: -1}, "", true},
		"empty file":        {Secret{What: "PIN", File: write(t, "\n"), Descriptor: -1}, "", true},
		"huge file":         {Secret{What: "PIN", File: write(t, strings.Repeat("x", 5000)), Descriptor: -1}, "", true},
	} {
		got, err := test.secret.Read()
		if (err != nil) != test.fails || string(got) != test.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestErrorsAreToldInOneLineWithHint(t *testing.T) {
	var out bytes.Buffer
	report(&out, "chancery", &Error{Code: "denied", Message: "no", Hint: "ask"}, false)
	if out.String() != "chancery: no [denied]\nchancery: hint: ask\n" {
		t.Errorf("got %q", out.String())
	}
	out.Reset()
	report(&out, "chancery", &Error{Code: "denied", Message: "no"}, true)
	if out.String() != `{"code":"denied","hint":"","message":"no"}`+"\n" {
		t.Errorf("got %q", out.String())
	}
}

func TestRunGivesUsageErrorsTheirExitCode(t *testing.T) {
	root := &cobra.Command{Use: "chancery", Args: Args(cobra.NoArgs), RunE: func(*cobra.Command, []string) error { return nil }}
	root.AddCommand(ConfigCommand(nil, nil))
	for _, test := range []struct {
		args []string
		want ExitCode
	}{
		{nil, ExitDone},
		{[]string{"--no-such-flag"}, ExitUsage},
		{[]string{"no-such-command"}, ExitUsage},
		{[]string{"config", "no-such-command"}, ExitUsage},
	} {
		root.SetArgs(test.args)
		if got := Run(root, func(error) *Error { return nil }); got != test.want {
			t.Errorf("%v: exit %d", test.args, got)
		}
	}
}

func TestForeignTextDoesNotDriveTheTerminal(t *testing.T) {
	const foreign = "a\x1b]0;owned\x07\tb\r\u202ec\u009b2J"
	var out bytes.Buffer
	if err := Table(&out, []string{"NAME", "LABEL"}, [][]string{{"x", foreign}}); err != nil {
		t.Fatal(err)
	}
	report(&out, "program", &Error{Code: foreign, Message: foreign, Hint: foreign}, false)
	if strings.ContainsAny(out.String(), "\x1b\x07\r\u202e\u009b") {
		t.Errorf("printed %q", out.String())
	}
	if got := Visible("Zoë's key, 100 % – ok"); got != "Zoë's key, 100 % – ok" {
		t.Errorf("harmless text became %q", got)
	}
}
