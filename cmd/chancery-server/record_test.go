package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/audit"
	"chancery/internal/cli"
)

// TestAnActWhoseOutcomeCannotBeRecorded loses the log between the two records of an act.
func TestAnActWhoseOutcomeCannotBeRecorded(t *testing.T) {
	for told, failure := range map[string]error{
		"the change IS MADE, ":               nil,
		"the change failed (token_absent), ": &cli.Error{Code: "token_absent", Message: "no such token"},
	} {
		dir := filepath.Join(t.TempDir(), "audit")
		log, err := audit.Open(audit.Config{Directory: dir, Process: program})
		if err != nil {
			t.Fatal(err)
		}
		done := 0
		err = recordAct(t.Context(), log, act{name: "key.delete", key: "release", details: map[string]string{}}, func() error {
			done++
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			return failure
		})
		var met *cli.Error
		if !errors.As(err, &met) || met.Code != "audit_incomplete" || met.Exit != cli.ExitFailed {
			t.Fatalf("the operator meets %v", err)
		}
		if !strings.HasPrefix(met.Message, told+"but the audit log only has its beginning, as record 2: ") || met.Hint == "" {
			t.Errorf("told: %s", met.Message)
		}
		if done != 1 || failure != nil && !errors.Is(err, failure) {
			t.Errorf("done %d times: %v", done, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("a new log was begun, which would look complete")
		}
		log.Close()
	}
}

// TestAnActThatCannotBeRecordedIsNotDone: without its intent in the log nothing happens.
func TestAnActThatCannotBeRecordedIsNotDone(t *testing.T) {
	log, err := audit.Open(audit.Config{Directory: filepath.Join(t.TempDir(), "audit"), Process: program})
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	err = recordAct(t.Context(), log, act{name: "key.delete", details: map[string]string{}}, func() error {
		t.Error("it was done all the same")
		return nil
	})
	if err == nil || !strings.HasPrefix(err.Error(), "nothing was changed, ") {
		t.Errorf("%v", err)
	}
}
