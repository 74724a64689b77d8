package guard

import (
	"context"
	"errors"
	"fmt"

	"chancery/token"
)

// guarded is a token whose PINs pass through the guard.
type guarded struct {
	token.Token
	guard *Guard
}

// attesting is one that can say where its keys live, too.
type attesting struct {
	*guarded
	token.Attester
}

// Login sends the PIN if it may be sent. Beside the token's own errors: token.ErrPINRejected,
// token.ErrFinalTry, token.ErrPINLocked and token.ErrPINMemory, of which none has cost a try, and token.ErrBusy when
// another login has gone on for 15 seconds, or until the context's end.
func (t *guarded) Login(ctx context.Context, pin []byte) error {
	return t.guarding(ctx, func(f *file, before token.Info) error {
		if before.LoggedIn {
			return nil
		}
		return t.send(ctx, f, before.PIN, attempt{pin: pin, uncounted: uncounted(before), send: func() error { return t.Token.Login(ctx, pin) }})
	})
}

// ChangePIN guards the old PIN as Login does. The new one is forgotten if it was remembered, for it is right from now on.
func (t *guarded) ChangePIN(ctx context.Context, old, new []byte) error {
	return t.guarding(ctx, func(f *file, before token.Info) error {
		return t.send(ctx, f, before.PIN, attempt{pin: old, next: new, uncounted: uncounted(before), send: func() error { return t.Token.ChangePIN(ctx, old, new) }})
	})
}

// attempt is one PIN to be sent.
type attempt struct {
	pin  []byte
	next []byte // the PIN that takes its place if it is right; nil: itself
	send func() error

	uncounted bool // the token has no counter that a try without an answer could have moved
}

// uncounted tells tokens that cannot be locked by wrong PINs: software ones.
func uncounted(info token.Info) bool { return info.Driver == "soft" }

// guarding does something while no other process sends this token a PIN. It is told what the token says of itself then.
func (t *guarded) guarding(ctx context.Context, do func(*file, token.Info) error) error {
	info, err := t.Info(ctx)
	if err != nil {
		return err
	}
	if info.Serial == "" {
		return fmt.Errorf("guard: %w: the token has no serial number to remember it by", token.ErrPINMemory)
	}
	f, err := t.guard.open(ctx, info.Serial)
	if err != nil {
		return err
	}
	defer f.close()
	now, err := t.Info(ctx)
	if err != nil {
		return err
	}
	if now.Serial != info.Serial {
		return fmt.Errorf("guard: %w: another token has taken its place", token.ErrTokenAbsent)
	}
	return do(f, now)
}

// send sends a PIN, if it may be sent, once the file says that it is on its way.
func (t *guarded) send(ctx context.Context, f *file, before token.PINState, a attempt) error {
	memory, err := f.load()
	if err != nil {
		return err
	}
	mark := t.guard.derive(a.pin, memory.Salt[:])
	settled := memory.settle(wrongSeen(before))
	if refused := refusal(memory, mark, before); refused != nil {
		if !settled {
			return refused
		}
		return errors.Join(refused, f.save(memory))
	}
	memory.begin(mark)
	if !a.uncounted {
		if err := f.save(memory); err != nil {
			return err
		}
	}
	answer := a.send()
	if !t.note(ctx, memory, mark, before, answer) {
		return answer
	}
	if answer == nil && a.next != nil {
		memory.right(t.guard.derive(a.next, memory.Salt[:]))
	}
	// After a right PIN the file only says too much if it cannot be written: the next right one takes that away.
	if err := f.save(memory); err != nil && answer != nil {
		return fmt.Errorf("%w; and that could not be recorded: %w", answer, err)
	}
	return answer
}

// refusal tells why a PIN may not be sent.
func refusal(memory *record, mark tag, state token.PINState) error {
	switch {
	case memory.rejected(mark):
		return fmt.Errorf("guard: %w: an operator who is sure of it lets it be tried again with \"token unblock\"", token.ErrPINRejected)
	case memory.tries(mark) >= maxUnfinished:
		return fmt.Errorf("guard: %w, or never answered: the last %d logins with it did not end; an operator lets it be tried again with \"token unblock\"", token.ErrPINRejected, maxUnfinished)
	case state.Locked:
		return fmt.Errorf("guard: %w: its security officer has to set a new PIN", token.ErrPINLocked)
	case state.FinalTry:
		return fmt.Errorf("guard: %w: no PIN is sent until somebody has logged in with the right one by the token's own tool", token.ErrFinalTry)
	case memory.full(mark):
		return fmt.Errorf("guard: %w: so it did with %d others, and no more are sent; an operator begins anew with \"token unblock\"", token.ErrPINRejected, maxPINs)
	}
	return nil
}

// note changes the record by what came of sending a PIN. It answers false when nobody can tell, so that the mark has to stay.
func (t *guarded) note(ctx context.Context, memory *record, mark tag, before token.PINState, answer error) bool {
	switch {
	case answer == nil:
		memory.right(mark)
		return true
	case errors.Is(answer, token.ErrPINIncorrect):
		memory.wrong(mark)
		return true
	}
	// The request may have ended, but what the token counted has to be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerPatience)
	defer cancel()
	after, err := t.Info(ctx)
	switch {
	case err != nil:
		return false
	case worse(before, after.PIN):
		memory.wrong(mark)
	case wrongSeen(after.PIN) && !unsent(answer):
		memory.settle(false) // the counter may have moved without its flags
	default:
		memory.withdraw(mark)
	}
	return true
}

// unsent tells errors with which a driver says that it did not send the PIN at all.
func unsent(err error) bool {
	for _, reason := range []error{token.ErrBusy, token.ErrClosed, token.ErrPINInvalid, token.ErrPINLocked, token.ErrUnsupported, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}

// wrongSeen tells whether the token has seen a wrong PIN since the last right one.
func wrongSeen(state token.PINState) bool { return state.CountLow || state.FinalTry || state.Locked }

func worse(before, after token.PINState) bool {
	return after.CountLow && !before.CountLow || after.FinalTry && !before.FinalTry || after.Locked && !before.Locked
}
