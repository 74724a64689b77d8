package helper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"chancery/seal"
	"chancery/seal/helper"
)

const roleEnv = "CHANCERY_TEST_SEAL_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) == "" {
		os.Exit(m.Run())
	}
	err := helper.Serve(context.Background(), os.Stdin, os.Stdout, func(kind string, parameters, secret []byte) (seal.Keeper, error) {
		return fake{kind, string(parameters), string(secret)}, nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

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
		Kind: "fake", Parameters: []byte(parameters), Secret: []byte("PIN"),
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

func TestAHelperTakesNoOtherInput(t *testing.T) {
	var out bytes.Buffer
	if err := helper.Serve(t.Context(), strings.NewReader("hello"), &out, nil); err == nil || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}
}

func FuzzServe(f *testing.F) {
	f.Add([]byte(`{"kind":"fake","parameters":"","new":true}`))
	f.Add([]byte(`{"kind":"fake","parameters":"b2Rk","kept":"AA=="}`))
	f.Fuzz(func(t *testing.T, question []byte) {
		var out bytes.Buffer
		err := helper.Serve(t.Context(), bytes.NewReader(question), &out, func(kind string, _, secret []byte) (seal.Keeper, error) {
			return fake{kind: kind, secret: string(secret)}, nil
		})
		if (err == nil) != (bytes.Count(out.Bytes(), []byte("\n")) == 1) {
			t.Fatalf("%v, answered %q", err, out.String())
		}
	})
}
