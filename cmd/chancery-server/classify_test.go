package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"chancery/access"
	"chancery/admin"
	"chancery/internal/cli"
	"chancery/token"
	"chancery/users"
)

func TestClassify(t *testing.T) {
	for _, test := range []struct {
		err     error
		exit    cli.ExitCode
		code    string
		message string
	}{
		{fmt.Errorf("admin: user %q: %w", "alice", access.ErrWrongPassphrase), cli.ExitDenied, "wrong_passphrase", `user "alice": the passphrase does not open this grant`},
		{fmt.Errorf("token %q: %w", "t", token.ErrTokenAbsent), cli.ExitToken, "token_absent", `token "t": absent`},
		{fmt.Errorf("soft: login on token %q: %w", "t", token.ErrPINLocked), cli.ExitToken, "token_locked", `login on token "t": PIN locked`},
		{fmt.Errorf("x: %w", token.ErrBusy), cli.ExitUnreachable, "token_busy", "x: busy"},
		{errors.Join(token.ErrPINIncorrect, users.ErrStale), cli.ExitUnreachable, "changed_meanwhile", "PIN incorrect; changed meanwhile"},
		{fmt.Errorf("users/sqlite: x: %w", result(13)), cli.ExitFailed, "disk_full", "x: result 13"},
		{fmt.Errorf("users/sqlite: x: %w", result(5|2<<8)), cli.ExitUnreachable, "database_busy", "x: result 517"},
		{fmt.Errorf("users/sqlite: x: %w", context.Canceled), cli.ExitFailed, "canceled", "x: the command was stopped before its end"},
		{fmt.Errorf("soft: token %q: %w: %w", "t", token.ErrBusy, context.Canceled), cli.ExitFailed, "canceled", `token "t": busy: the command was stopped before its end`},
		{fmt.Errorf("admin: token %q did not confirm: %w", "t", context.DeadlineExceeded), cli.ExitUnreachable, "timeout", `token "t" did not confirm: it took longer than it may`},
		{fmt.Errorf("users/sqlite: x: %w", result(9)), cli.ExitFailed, "canceled", "x: result 9"},
		{fmt.Errorf("token %q: %w", "t", users.ErrFinalTry), cli.ExitToken, "token_final_try", `token "t": the next wrong PIN locks the token`},
		{fmt.Errorf("x: %w", users.ErrPINRejected), cli.ExitToken, "token_pin_rejected", "x: the token rejected this PIN earlier"},
		{fmt.Errorf("x: %w", token.ErrNoKey), cli.ExitFailed, "key_absent", "x: no such key"},
		{fmt.Errorf("x: %w", token.ErrLoginRequired), cli.ExitUnreachable, "login_required", "x: login required"},
		{fmt.Errorf("x: %w", token.ErrUnsupported), cli.ExitFailed, "not_supported", "x: not supported by this token"},
		{fmt.Errorf("%w %q", admin.ErrKeyDisabled, "k"), cli.ExitDenied, "key_disabled", `disabled key "k"`},
		{fmt.Errorf("%w %q", admin.ErrUserDisabled, "u"), cli.ExitDenied, "user_disabled", `disabled user "u"`},
		{errors.New("boom\n  and more"), cli.ExitFailed, "failed", "boom and more"},
	} {
		got := classify(test.err)
		if got.Exit != test.exit || got.Code != test.code || got.Message != test.message {
			t.Errorf("%v: exit %d, %s, %q", test.err, got.Exit, got.Code, got.Message)
		}
		if !errors.Is(got, test.err) {
			t.Errorf("%v: the cause is lost", test.err)
		}
	}
}

// result fails as SQLite does.
type result int

func (r result) Error() string { return fmt.Sprintf("result %d", int(r)) }

func (r result) Code() int { return int(r) }

func TestCodesAreUniquePerMeaning(t *testing.T) {
	exits := make(map[string]cli.ExitCode)
	for _, k := range kinds {
		if exit, seen := exits[k.code]; seen && exit != k.exit {
			t.Errorf("code %s ends with %d and with %d", k.code, exit, k.exit)
		}
		exits[k.code] = k.exit
	}
}
