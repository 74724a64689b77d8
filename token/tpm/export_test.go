package tpm

import (
	"context"
	"time"

	"chancery/token"
)

// Authorisation is what the token at config derives from the PIN.
func Authorisation(config Config, pin []byte) ([]byte, error) {
	m, err := readManifest(config.Directory)
	if err != nil {
		return nil, err
	}
	return m.authorisation(pin), nil
}

// AuthorisationOf is what a token with this storage key, identity and salt derives from the PIN.
func AuthorisationOf(parent []byte, identity string, salt, pin []byte) []byte {
	m := manifest{Parent: parent, Identity: identity, Salt: salt}
	return m.authorisation(pin)
}

// KeysDir is where the key files in force are.
func KeysDir(config Config) (string, error) {
	m, err := readManifest(config.Directory)
	if err != nil {
		return "", err
	}
	return m.keysDir(config.Directory), nil
}

// DecodeManifest and DecodeKeyFile are what reads the files, for fuzzing.
func DecodeManifest(data []byte) error {
	_, err := decodeManifest(data)
	return err
}

func DecodeKeyFile(data []byte, serial string, id []byte) error {
	_, err := decodeKeyFile(data, serial, 0, id)
	return err
}

// answering is a TPM that answers each command with the same.
type answering []byte

func (a answering) exchange(_, response []byte, _ time.Time) (int, error) {
	return copy(response, a), nil
}

func (answering) Close() error { return nil }

// AgainstAnswer runs the driver against a TPM that gives one answer to everything.
// The token reaches no other from then on.
func AgainstAnswer(ctx context.Context, t *Token, id, pin, answer []byte) {
	t.idle.Stop()                                                         // or else it would give up the connection that is put in place here
	brief := Timeouts{Command: time.Nanosecond, MakeKey: time.Nanosecond} // no retries
	channel := answering(answer)
	_, _ = CreateParent(&Transport{channel: channel, timeouts: brief})
	t.link.config.Device = "/absent"
	public, err := parsePublic(t.link.pinned)
	if err != nil {
		panic(err)
	}
	auth, generation := t.auth, t.generation
	for _, call := range []func(){
		func() { _, _ = t.Info(ctx) },
		func() { t.auth = nil; _ = t.Login(ctx, pin) },
		func() { _, _ = t.Key(ctx, id) },
		func() { _, _ = t.Attest(ctx, id) },
		guarded(t, func() error { return t.link.provePIN(mustManifest(t), pin) }),
		guarded(t, func() error { _, _, err := t.link.generate(token.RSA2048, nil, pin); return err }),
		guarded(t, func() error { _, err := acceptedKey(t).certify(&t.link); return err }),
		guarded(t, func() error { _, err := t.link.authSession(pin); return err }),
		guarded(t, func() error { return t.link.clearOrphans() }),
	} {
		t.idle.Stop()
		t.turn <- struct{}{}
		t.auth, t.generation = auth, generation
		t.link.transport = &Transport{channel: channel, timeouts: brief}
		t.link.parent = &Parent{Handle: 0x80000000, Public: *public}
		t.link.session, t.link.loaded, t.link.offers = nil, nil, nil
		<-t.turn
		call()
	}
	t.auth, t.generation = auth, generation
}

func guarded(t *Token, call func() error) func() {
	return func() {
		t.turn <- struct{}{}
		defer func() { <-t.turn }()
		_ = t.link.try(call)
	}
}

func mustManifest(t *Token) *manifest {
	m, err := t.currentManifest()
	if err != nil {
		panic(err)
	}
	return m
}

// acceptedKey passes for a key that the TPM is asked to use without further questions.
func acceptedKey(t *Token) *key {
	o, err := mustManifest(t).pinObject()
	if err != nil {
		panic(err)
	}
	return &key{token: t, file: &keyFile{object: o}, accepted: true}
}
