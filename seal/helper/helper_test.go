package helper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"chancery/internal/confine"
	"chancery/seal"
	"chancery/seal/helper"
)

const roleEnv = "CHANCERY_TEST_SEAL_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) == "" {
		os.Exit(m.Run())
	}
	if err := program(confine.Apply).Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// program keeps shares in a fake.
func program(apply func(confine.Rules) []confine.Notice) helper.Program {
	return helper.Program{Confine: apply, Keeper: func(kind string, parameters, secret []byte) (seal.Keeper, error) {
		return fake{kind, string(parameters), string(secret)}, nil
	}}
}

// unconfined stands for confine.Apply where the test itself would be confined.
func unconfined(confine.Rules) []confine.Notice { return nil }

// fake does in the helper's process what its parameters say.
type fake struct{ kind, parameters, secret string }

func (f fake) New(ctx context.Context) (share, kept []byte, err error) {
	share, err = f.Share(ctx, nil)
	return share, []byte("kept by " + f.kind), err
}

func (f fake) Share(_ context.Context, kept []byte) ([]byte, error) {
	switch f.parameters {
	case "hang":
		time.Sleep(time.Hour)
	case "crash":
		panic("the module crashes")
	case "noise":
		fmt.Println(strings.Repeat("noise", 100_000))
	case "rejected":
		return nil, fmt.Errorf("token x: %w", seal.ErrPIN)
	case "odd":
		return nil, errors.New("an error that nobody knows")
	case "connect":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		l.Close()
	}
	if path, ok := strings.CutPrefix(f.parameters, "write "); ok {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return nil, err
		}
	}
	return []byte("share for " + f.secret + " of " + string(kept)), nil
}

func ask(parameters string) *helper.Keeper {
	return &helper.Keeper{
		Command: func(ctx context.Context) *exec.Cmd {
			command := exec.CommandContext(ctx, os.Args[0])
			command.Env = append(os.Environ(), roleEnv+"=1")
			return command
		},
		Kind: "fake", Parameters: []byte(parameters), Secret: []byte("PIN"), Log: slog.New(slog.DiscardHandler),
	}
}

func TestAHelperAnswers(t *testing.T) {
	share, kept, err := ask("").New(t.Context())
	if err != nil || string(kept) != "kept by fake" || string(share) != "share for PIN of " {
		t.Fatalf("%q, %q, %v", share, kept, err)
	}
	if share, err = ask("").Share(t.Context(), kept); err != nil || string(share) != "share for PIN of kept by fake" {
		t.Errorf("%q, %v", share, err)
	}
	if _, err := ask("rejected").Share(t.Context(), kept); !errors.Is(err, seal.ErrPIN) || !strings.Contains(err.Error(), "token x") {
		t.Errorf("%v", err)
	}
}

func TestAHelperThatFailsIsAbsent(t *testing.T) {
	for _, how := range []string{"crash", "noise", "odd"} {
		if share, err := ask(how).Share(t.Context(), nil); !errors.Is(err, seal.ErrAbsent) || share != nil {
			t.Errorf("%s: %q, %v", how, share, err)
		}
	}
	missing := ask("")
	missing.Command = func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, "/nonexistent") }
	if _, err := missing.Share(t.Context(), nil); !errors.Is(err, seal.ErrAbsent) {
		t.Errorf("missing: %v", err)
	}
}

// TestWhatAHelperPrintsIsBounded: a module that prints without end does not cost the process that asks its memory.
func TestWhatAHelperPrintsIsBounded(t *testing.T) {
	const printed, bound = 64 << 20, 8 << 20
	for name, script := range map[string]string{"output": "", "errors": ">&2"} {
		noisy := ask("")
		noisy.Command = func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero %s; exit 1", printed, script))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := noisy.Share(t.Context(), nil)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, seal.ErrAbsent) {
			t.Errorf("%s: %v", name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > bound {
			t.Errorf("%s: asking took %d bytes of memory", name, took)
		}
	}
}

func TestAHelperThatHangsIsKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	before := time.Now()
	if _, err := ask("hang").Share(ctx, nil); !errors.Is(err, seal.ErrAbsent) {
		t.Errorf("%v", err)
	}
	if took := time.Since(before); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestAHelperIsConfined: what is asked of hardware runs with no more than the rules leave to it.
func TestAHelperIsConfined(t *testing.T) {
	inside, outside := t.TempDir(), t.TempDir()
	var lacks bytes.Buffer
	try := func(parameters string, rules confine.Rules) error {
		k := ask(parameters)
		k.Rules, k.Log = rules, slog.New(slog.NewTextHandler(&lacks, nil))
		_, err := k.Share(t.Context(), nil)
		return err
	}
	for name, c := range map[string]struct {
		parameters string
		rules      confine.Rules
		refused    bool
	}{
		"its own file":         {"write " + filepath.Join(inside, "f"), confine.Rules{Write: []string{inside}}, false},
		"another's file":       {"write " + filepath.Join(outside, "f"), confine.Rules{Write: []string{inside}}, true},
		"the network":          {"connect", confine.Rules{}, true},
		"a network of its own": {"connect", confine.Rules{Network: true}, false},
	} {
		lacks.Reset()
		err := try(c.parameters, c.rules)
		if c.refused && err == nil && lacks.Len() > 0 {
			t.Logf("%s: not refused on this kernel: %s", name, lacks.String())
			continue
		}
		if (err != nil) != c.refused || c.refused && !errors.Is(err, seal.ErrAbsent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWhatAHelperKeepsIsTold: a restriction that the kernel refuses is a warning, and no reason to stop.
func TestWhatAHelperKeepsIsTold(t *testing.T) {
	var out bytes.Buffer
	lacking := func(confine.Rules) []confine.Notice {
		return []confine.Notice{{What: "the network is open", Why: "old"}}
	}
	if err := program(lacking).Serve(t.Context(), strings.NewReader(`{"parameters":"b2Rk"}`), &out); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "the network is open") || !strings.Contains(text, "nobody knows") {
		t.Errorf("answered %s", text)
	}
}

func TestAHelperTakesNoOtherInput(t *testing.T) {
	var out bytes.Buffer
	if err := program(unconfined).Serve(t.Context(), strings.NewReader("hello"), &out); err == nil || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}
}

func FuzzServe(f *testing.F) {
	f.Add([]byte(`{"kind":"fake","parameters":"","new":true}`))
	f.Add([]byte(`{"kind":"fake","parameters":"b2Rk","kept":"AA=="}`))
	f.Fuzz(func(t *testing.T, question []byte) {
		var out bytes.Buffer
		p := program(unconfined)
		p.Keeper = func(kind string, _, secret []byte) (seal.Keeper, error) {
			return fake{kind: kind, secret: string(secret)}, nil
		}
		err := p.Serve(t.Context(), bytes.NewReader(question), &out)
		if (err == nil) != (bytes.Count(out.Bytes(), []byte("\n")) == 1) {
			t.Fatalf("%v, answered %q", err, out.String())
		}
	})
}
