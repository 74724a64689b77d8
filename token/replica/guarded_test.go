package replica_test

import (
	"context"
	"testing"

	"chancery/token"
	"chancery/token/guard"
	"chancery/token/replica"
)

// openGuarded is openFakes with a guard in front of each member.
func openGuarded(t *testing.T, hsms ...*hsm) *replica.Token {
	t.Helper()
	var cfg replica.Config
	for i, h := range hsms {
		memory := guard.New(t.TempDir())
		cfg.Members = append(cfg.Members, replica.Member{Name: string(rune('A' + i)), Open: func(ctx context.Context) (token.Token, error) {
			open, err := h.open(ctx)
			if err != nil {
				return nil, err
			}
			return memory.Wrap(open), nil
		}})
	}
	tok, err := replica.Open(t.Context(), quickly(cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}

// TestWhatThePrimaryRejectedEarlier is not sent to the others either.
func TestWhatThePrimaryRejectedEarlier(t *testing.T) {
	keys := newKeys(t, "a")
	primary, second := newHSM(keys), newHSM(keys)
	tok := openGuarded(t, primary, second)
	wantError(t, "a wrong PIN", tok.Login(t.Context(), []byte("wrong")), token.ErrPINIncorrect)
	wantError(t, "the same again", tok.Login(t.Context(), []byte("wrong")), token.ErrPINRejected)
	if sent := get(primary, func(h *hsm) int { return len(h.logins) }); sent != 1 {
		t.Errorf("the primary was sent %d PINs", sent)
	}
	if sent := get(second, func(h *hsm) int { return len(h.logins) }); sent != 0 {
		t.Errorf("the second was sent %d PINs", sent)
	}
}
