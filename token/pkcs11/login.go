package pkcs11

import (
	"context"
	"fmt"
	"unsafe"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// Login proves the user PIN. It reads the token's PIN flags first and sends
// nothing to a token that is locked or has one try left: the last try is a
// person's to spend (token.ErrPINLocked).
func (t *Token) Login(ctx context.Context, pin []byte) error {
	if err := t.acquire(ctx, t.logins, 1); err != nil {
		return t.failed("login", err)
	}
	defer t.logins.Release(1)
	err := t.withSession(ctx, func(s session) error {
		in, err := t.loggedIn(s)
		if err != nil || in {
			return err
		}
		if err := mayTry(s, pin); err != nil {
			return err
		}
		if err := t.endDenied(s); err != nil {
			return err
		}
		err = s.api.Login(s.handle, p11.CKU_USER, view(pin))
		if hasCode(err, p11.CKR_USER_ALREADY_LOGGED_IN) {
			return nil
		}
		if err == nil {
			t.module.epoch.Add(1)
		}
		return err
	})
	if err == nil {
		return nil
	}
	if hasCode(err, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_INVALID) {
		err = fmt.Errorf("%w: %w", token.ErrPINIncorrect, err) // it cannot be the PIN
	}
	return t.failed("login", err)
}

// Logout ends the login of this process (C_Logout), also for other Tokens open on the same token. It waits for
// signatures under way: whether they survive a logout is up to the module (PKCS#11 v2.40 base
// specification, section 5.6, C_Logout).
func (t *Token) Logout(ctx context.Context) error {
	if err := t.acquire(ctx, t.logins, 1); err != nil {
		return t.failed("logout", err)
	}
	defer t.logins.Release(1)
	if err := t.logout(ctx); err != nil {
		return t.failed("logout", err)
	}
	return nil
}

func (t *Token) logout(ctx context.Context) error {
	return t.withoutSigners(ctx, func() error {
		return t.withAllSessions(ctx, func(s session) error {
			in, err := s.loggedIn()
			if err != nil || !in {
				return err
			}
			return t.end(s)
		})
	})
}

// end logs out.
func (t *Token) end(s session) error {
	t.module.epoch.Add(1) // whatever the module answers, no handle is sure any more
	err := s.api.Logout(s.handle)
	if hasCode(err, p11.CKR_USER_NOT_LOGGED_IN) {
		return nil
	}
	return err
}

// endDenied ends a login that the module claims and the token denies: a module may refuse C_Login while it does.
func (t *Token) endDenied(s session) error {
	in, err := s.loggedIn()
	if err != nil || !in {
		return err
	}
	return t.end(s)
}

// ChangePIN sets a new user PIN (C_SetPIN). It spends a try as Login does when
// old is wrong, and refuses in the same cases.
func (t *Token) ChangePIN(ctx context.Context, old, new []byte) error {
	if err := t.acquire(ctx, t.logins, 1); err != nil {
		return t.failed("change PIN", err)
	}
	defer t.logins.Release(1)
	err := t.withSession(ctx, func(s session) error {
		if err := mayTry(s, old); err != nil {
			return err
		}
		if err := mayBecomePIN(s, new); err != nil {
			return err
		}
		return s.api.SetPIN(s.handle, view(old), view(new))
	})
	if err != nil {
		return t.failed("change PIN", err)
	}
	return nil
}

// mayTry refuses to spend a try that must not be spent or is bound to fail.
func mayTry(s session, pin []byte) error {
	info, err := s.api.GetTokenInfo(s.slot)
	if err != nil {
		return err
	}
	return refusal(info, pin)
}

// refusal reads the flags of CK_TOKEN_INFO (PKCS#11 v2.40 base specification, section 3.2).
func refusal(info p11.TokenInfo, pin []byte) error {
	switch {
	case info.Flags&p11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("%w: the security officer has to set a new one", token.ErrPINLocked)
	case info.Flags&p11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("%w: one try is left and the last one is never spent automatically; "+
			"log in once with the token's own tool", token.ErrPINLocked)
	case info.Flags&p11.CKF_USER_PIN_INITIALIZED == 0:
		return fmt.Errorf("%w: the security officer has not set one yet", token.ErrPINLocked)
	case !lengthFits(pin, info):
		return fmt.Errorf("%w: its length is none that this token takes", token.ErrPINIncorrect)
	}
	return nil
}

func mayBecomePIN(s session, pin []byte) error {
	info, err := s.api.GetTokenInfo(s.slot)
	if err != nil {
		return err
	}
	if !lengthFits(pin, info) {
		return fmt.Errorf("%w: it must have %d to %d bytes", token.ErrPINInvalid, info.MinPinLen, info.MaxPinLen)
	}
	return nil
}

// lengthFits compares with the lengths that the token states. An empty PIN
// never fits: some modules take it as "ask at the reader".
func lengthFits(pin []byte, info p11.TokenInfo) bool {
	n := uint(len(pin))
	if n == 0 || n < info.MinPinLen {
		return false
	}
	return info.MaxPinLen == 0 || info.MaxPinLen == p11.CK_UNAVAILABLE_INFORMATION || n <= info.MaxPinLen
}

// view lets the bindings read a PIN in place: a string made by conversion would
// be one more copy, and one that cannot be wiped. The bindings still copy it for
// the module, and free that as it is.
func view(pin []byte) string {
	return unsafe.String(unsafe.SliceData(pin), len(pin))
}
