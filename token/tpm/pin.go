package tpm

import (
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

// Lengths of a PIN in bytes.
const (
	MinPINLength = 4
	MaxPINLength = 255
)

// inLockout is a bit of TPMA_PERMANENT (part 2, section 8.6).
const inLockout = 1 << 9

func checkNewPIN(pin []byte) error {
	if len(pin) < MinPINLength || len(pin) > MaxPINLength {
		return fmt.Errorf("a PIN has %d to %d bytes: %w", MinPINLength, MaxPINLength, token.ErrPINInvalid)
	}
	return nil
}

// pinTemplate is a small sealed secret that nobody needs. Whoever unseals it
// has the PIN; whoever fails has spent one of the TPM's tries, since noDA is clear.
func pinTemplate(serial string) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: binding(serial, "PIN")},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}

// makePINObject has the TPM wrap the PIN object and puts it into the manifest.
func (l *link) makePINObject(m *manifest, auth []byte) error {
	secret := randomBytes(saltBytes)
	defer clear(secret)
	l.evict(0)
	rsp, err := tpm2.Create{
		ParentHandle: l.parent.Auth(),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: auth},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(pinTemplate(m.serial())),
	}.Execute(l.transport, l.parent.Session(EncryptedIn()))
	if err != nil {
		return err
	}
	m.PINPublic, m.PINPrivate = rsp.OutPublic.Bytes(), rsp.OutPrivate.Buffer
	_, err = m.pinObject()
	return err
}

// provePIN spends one try: it unseals the PIN object. Nothing of that is ever repeated.
func (l *link) provePIN(m *manifest, auth []byte) error {
	pinObject, err := m.pinObject()
	if err != nil {
		return err
	}
	l.evict(0)
	handle, err := l.loadOnce(pinObject)
	if err != nil {
		return err
	}
	l.repeat = false
	_, err = tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
		Handle: handle.Handle, Name: handle.Name,
		Auth: l.parent.Session(tpm2.Auth(auth), EncryptedOut()),
	}}.Execute(l.transport)
	if flushErr := l.flushAfter(err, handle.Handle); err == nil {
		err = flushErr
	}
	return err
}

// flushAfter flushes a handle unless the link broke before.
func (l *link) flushAfter(err error, handle tpm2.TPMHandle) error {
	if l.broken(err) {
		return nil
	}
	return flush(l.transport, handle)
}

// pinState reads the TPM's counter of wrong authorisations. It counts for all
// protected objects of the TPM, whoever tried (part 1, section 19.8).
func (l *link) pinState() (token.PINState, error) {
	counter, err := l.property(tpm2.TPMPTLockoutCounter)
	if err != nil {
		return token.PINState{}, err
	}
	limit, err := l.property(tpm2.TPMPTMaxAuthFail)
	if err != nil {
		return token.PINState{}, err
	}
	permanent, err := l.property(tpm2.TPMPTPermanent)
	if err != nil {
		return token.PINState{}, err
	}
	locked := permanent&inLockout != 0 || counter >= limit
	return token.PINState{
		CountLow: counter > 0,
		FinalTry: !locked && counter+1 >= limit,
		Locked:   locked,
	}, nil
}

// mayTryPIN is mayTry, and refuses what cannot be a PIN.
func (l *link) mayTryPIN(pin []byte) error {
	if len(pin) < MinPINLength || len(pin) > MaxPINLength {
		return fmt.Errorf("a PIN has %d to %d bytes: %w", MinPINLength, MaxPINLength, token.ErrPINIncorrect)
	}
	return l.mayTry()
}

// mayTry refuses to spend a try that must not be spent or is bound to fail. Ask it before each authorisation that the
// TPM has not taken for the same object since the login. Another program may spend tries in between.
func (l *link) mayTry() error {
	state, err := l.pinState()
	switch {
	case err != nil:
		return err
	case state.Locked:
		return fmt.Errorf("%w: the TPM recovers by itself after its recovery time, or by 'tpm2_dictionarylockout --clear-lockout'", token.ErrPINLocked)
	case state.FinalTry:
		return fmt.Errorf("%w: one try is left and the last one is never spent automatically; "+
			"wait for the TPM's recovery time, or run 'tpm2_dictionarylockout --clear-lockout'", token.ErrPINLocked)
	}
	return nil
}

// Login proves the PIN to the TPM, which costs one of its tries when the PIN is
// wrong. A TPM that is locked or has one try left is asked nothing (token.ErrPINLocked).
func (t *Token) Login(ctx context.Context, pin []byte) error {
	return t.use(ctx, "login", func(l *link) error {
		m, err := t.currentManifest()
		if err != nil {
			return err
		}
		if t.auth != nil && t.generation == m.Generation {
			return nil
		}
		if err := l.mayTryPIN(pin); err != nil {
			return err
		}
		auth := m.authorisation(pin)
		if err := l.provePIN(m, auth); err != nil {
			clear(auth)
			return err
		}
		t.logIn(m, auth)
		return nil
	})
}

func (t *Token) logIn(m *manifest, auth []byte) {
	clear(t.auth)
	t.auth, t.generation = auth, m.Generation
	for _, k := range t.keys {
		k.accepted, k.refused = false, false
	}
}

// Logout forgets the authorisation and flushes the session that proved it.
// Signatures under way end first. It needs no TPM.
func (t *Token) Logout(ctx context.Context) error {
	if err := t.take(ctx); err != nil {
		return t.failed("logout", err)
	}
	defer t.give()
	t.logOut()
	return nil
}

func (t *Token) logOut() {
	t.link.endSession()
	clear(t.auth)
	t.auth = nil
}
