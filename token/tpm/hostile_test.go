package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// Command codes (part 2, section 6.5.2).
const (
	ccCreatePrimary = 0x131
	ccSign          = 0x15d
	ccCreate        = 0x153
	ccGetCapability = 0x17a
)

// hostile makes a token behind an interposer, logged in, with one key.
func hostile(t *testing.T) (*swtpm.Interposer, *swtpm.TPM, *tpm.Token, token.Key, tpm.Config) {
	t.Helper()
	made := swtpm.Start(t)
	made.SetLockout(20, time.Hour)
	p := swtpm.Interpose(t, made)
	config := newToken(t, made)
	config.Device, config.Timeouts = p.Device, tpm.Timeouts{Command: time.Second}
	tok := open(t, config)
	login(t, tok)
	return p, made, tok, generate(t, tok, "a", token.P256), config
}

// TestHostileAnswers damages every kind of answer in every way, and wants an error each time and no panic.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	p, made, tok, key, _ := hostile(t)
	made.SetLockout(1000, time.Hour) // a session that was damaged fails, and that counts
	for name, damage := range map[string]func([]byte) []byte{
		"nothing":    func([]byte) []byte { return nil },
		"one byte":   func(b []byte) []byte { return b[:1] },
		"header":     func(b []byte) []byte { return resized(b[:10]) },
		"cut":        func(b []byte) []byte { return resized(b[:len(b)-1]) },
		"longer":     func(b []byte) []byte { return resized(append(b, 0)) },
		"huge size":  func(b []byte) []byte { return binary.BigEndian.AppendUint32(b[:2], 1<<31) },
		"zeros":      func(b []byte) []byte { clear(b[10:]); return b },
		"ones":       func(b []byte) []byte { fill(b[10:], 0xff); return b },
		"last bit":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"strange rc": func(b []byte) []byte { binary.BigEndian.PutUint32(b[6:], 0xdeadbeef); return b },
	} {
		for _, code := range []uint32{ccCreatePrimary, ccSign, ccCreate, 0x157 /* Load */, 0x176 /* StartAuthSession */, 0x15e /* Unseal */, ccGetCapability} {
			tamper := func(command, answer []byte) []byte {
				if swtpm.IsCommand(command, code) {
					return damage(bytes.Clone(answer))
				}
				return answer
			}
			p.With(tamper, func() {
				_ = tok.Logout(t.Context())
				_ = tok.Login(t.Context(), pin)
				_, _ = tok.Generate(t.Context(), token.KeySpec{ID: []byte(name), Algorithm: token.P256})
				if err := sign(t, key); errors.Is(err, errWrong) {
					t.Errorf("%s of %#x: %v", name, code, err)
				}
			})
		}
	}
	wantError(t, "logout", tok.Logout(t.Context()), nil)
	login(t, tok)
	wantError(t, "sign without damage", sign(t, key), nil)
}

func resized(b []byte) []byte {
	binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
	return b
}

func fill(b []byte, value byte) {
	for i := range b {
		b[i] = value
	}
}

// TestForgedSignature alters the signature, which the session's HMAC covers.
func TestForgedSignature(t *testing.T) {
	p, _, _, key, _ := hostile(t)
	forge := func(command, answer []byte) []byte {
		if swtpm.IsCommand(command, ccSign) {
			answer[20] ^= 1 // within the parameters
		}
		return answer
	}
	p.With(forge, func() {
		wantError(t, "a forged signature", sign(t, key), token.ErrTokenAbsent)
	})
	wantError(t, "an honest one", sign(t, key), nil)
}

// pointX is where the public point begins in the answer to TPM2_CreatePrimary
// for an ECC storage key: after header, handle, two sizes and the parameters.
const pointX = 44

// TestSwappedStorageKey offers another storage key, to which an interposer
// could read what is encrypted.
func TestSwappedStorageKey(t *testing.T) {
	p, made, _, _, config := hostile(t)
	before := made.LockoutCounter()
	point, err := privateScalar(t).key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	swap := func(command, answer []byte) []byte {
		if swtpm.IsCommand(command, ccCreatePrimary) {
			copy(answer[pointX:], point[1:33])
			copy(answer[pointX+34:], point[33:])
		}
		return answer
	}
	p.With(swap, func() {
		wantError(t, "login", open(t, config).Login(t.Context(), pin), token.ErrTokenAbsent)
	})
	if after := made.LockoutCounter(); after != before {
		t.Errorf("it cost %d tries", after-before)
	}
}

// TestSilentTPM bounds how long a TPM may take.
func TestSilentTPM(t *testing.T) {
	t.Parallel()
	p, _, _, key, _ := hostile(t)
	release := make(chan struct{})
	hang := func(_, answer []byte) []byte {
		<-release
		return answer
	}
	p.Set(hang)
	start := time.Now()
	wantError(t, "a TPM that hangs", sign(t, key), token.ErrTokenAbsent)
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	close(release)
	p.Set(nil)
	wantError(t, "sign when it answers again", sign(t, key), nil)
}

// TestNothingSecretCrosses records all traffic of a token's life.
func TestNothingSecretCrosses(t *testing.T) {
	p, _, tok, key, config := hostile(t)
	first, err := tpm.Authorisation(config, pin)
	if err != nil {
		t.Fatal(err)
	}
	next := []byte("next PIN")
	private := privateScalar(t)
	if _, err := tok.Import(t.Context(), token.KeySpec{ID: []byte("i"), Algorithm: token.P256}, private.key); err != nil {
		t.Fatal(err)
	}
	wantError(t, "sign", sign(t, key), nil)
	wantError(t, "change", tok.ChangePIN(t.Context(), pin, next), nil)
	second, err := tpm.Authorisation(config, next)
	if err != nil {
		t.Fatal(err)
	}
	seen := p.Seen()
	for what, secret := range map[string][]byte{
		"PIN": pin, "new PIN": next, "authorisation": first, "new authorisation": second, "imported key": private.scalar,
	} {
		if bytes.Contains(seen, secret) {
			t.Errorf("the %s crossed the wire", what)
		}
	}
	if len(seen) < 4096 {
		t.Errorf("only %d bytes were seen", len(seen))
	}
}
