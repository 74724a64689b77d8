package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/miekg/pkcs11"
)

// rawSettings tell a raw worker where the token is.
type rawSettings struct{ Module, Serial, PIN string }

// The numbers of Ed25519 in PKCS#11 v3.0, which the library does not name.
const mechanismEdDSA = 0x1057

// raw drives the token as directly as a Go program can: sessions that are held,
// object handles that were found once, nothing between.
type raw struct {
	api      *pkcs11.Ctx
	slot     uint
	sessions []pkcs11.SessionHandle
	keys     map[string]rawKey
}

type rawKey struct {
	handle    pkcs11.ObjectHandle
	mechanism []*pkcs11.Mechanism
	input     []byte
}

func newRaw(_ context.Context, settings *json.Decoder) (tasks, error) {
	var s rawSettings
	if err := settings.Decode(&s); err != nil {
		return nil, err
	}
	r, err := openRaw(s)
	if err != nil {
		return nil, err
	}
	return tasks{"rate": r.rate, "latency": r.latency}, nil
}

func openRaw(s rawSettings) (*raw, error) {
	r := &raw{api: pkcs11.New(s.Module), keys: make(map[string]rawKey)}
	if r.api == nil {
		return nil, fmt.Errorf("the module %s cannot be loaded", s.Module)
	}
	return r, r.open(s)
}

func (r *raw) open(s rawSettings) error {
	if err := r.api.Initialize(); err != nil {
		return err
	}
	slots, err := r.api.GetSlotList(true)
	if err != nil {
		return err
	}
	for _, slot := range slots {
		if info, err := r.api.GetTokenInfo(slot); err == nil && info.SerialNumber == s.Serial {
			r.slot = slot
			if err := r.addSession(); err != nil {
				return err
			}
			return r.api.Login(r.sessions[0], pkcs11.CKU_USER, s.PIN)
		}
	}
	return fmt.Errorf("no token has serial %s", s.Serial)
}

func (r *raw) addSession() error {
	session, err := r.api.OpenSession(r.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return err
	}
	r.sessions = append(r.sessions, session)
	return nil
}

// key finds a key by its label, once.
func (r *raw) key(label string) (rawKey, error) {
	if key, ok := r.keys[label]; ok {
		return key, nil
	}
	session := r.sessions[0]
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}
	if err := r.api.FindObjectsInit(session, template); err != nil {
		return rawKey{}, err
	}
	defer r.api.FindObjectsFinal(session)
	found, _, err := r.api.FindObjects(session, 2)
	if err != nil {
		return rawKey{}, err
	}
	if len(found) != 1 {
		return rawKey{}, fmt.Errorf("%d private keys have the label %q", len(found), label)
	}
	key := rawKey{handle: found[0]}
	key.mechanism, key.input = rawInput(label)
	r.keys[label] = key
	return key, nil
}

// digestInfo precedes a SHA-256 digest that is signed with RSA PKCS #1 v1.5 (RFC 8017, section 9.2).
var digestInfo = []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}

// rawInput returns what the token is given to sign a document.
func rawInput(algorithm string) ([]*pkcs11.Mechanism, []byte) {
	input := document(0)
	kind := uint(pkcs11.CKM_ECDSA)
	switch algorithm {
	case "rsa2048", "rsa4096":
		kind, input = pkcs11.CKM_RSA_PKCS, append(append([]byte(nil), digestInfo...), input...)
	case "ed25519":
		kind = mechanismEdDSA
	}
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(kind, nil)}, input
}

// document returns the digest of one of many documents; an Ed25519 key signs it as its message.
func document(number int) []byte {
	digest := sha256.Sum256(fmt.Appendf(nil, "document %d", number))
	return digest[:]
}

// documentHash is what document hashes with.
const documentHash = crypto.SHA256

// rate signs on Parallel sessions at once.
func (r *raw) rate(ctx context.Context, o order) (answer, error) {
	key, err := r.key(o.Key)
	if err != nil {
		return answer{}, err
	}
	for len(r.sessions) < o.Parallel {
		if err := r.addSession(); err != nil {
			return answer{}, err
		}
	}
	return until(ctx, o.Parallel, o.For, func(_ context.Context, i int) error { return r.sign(i, key) })
}

// latency times single signatures.
func (r *raw) latency(ctx context.Context, o order) (answer, error) {
	key, err := r.key(o.Key)
	if err != nil {
		return answer{}, err
	}
	return timed(ctx, o.For, func(_ context.Context, i int) error { return r.sign(i, key) })
}

func (r *raw) sign(session int, key rawKey) error {
	if err := r.api.SignInit(r.sessions[session], key.mechanism, key.handle); err != nil {
		return err
	}
	_, err := r.api.Sign(r.sessions[session], key.input)
	return err
}
