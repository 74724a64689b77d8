// Package pkcs11 keeps a seal's share encrypted by an RSA or AES key that never leaves a PKCS#11 token
// (PKCS#11 v2.40 and v3.0).
//
// It loads the module into the calling process, initialises and finalises it: run it in a process of its own (package
// seal/helper), which is also the only way to end a call that hangs.
package pkcs11

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/miekg/pkcs11"

	"chancery/seal"
)

// Parameters say which key of which token.
type Parameters struct {
	Module   string    `json:"module"`              // absolute path
	Serial   string    `json:"serial,omitempty"`    // of the token; empty: Label selects it
	Label    string    `json:"label,omitempty"`     // of the token
	KeyLabel string    `json:"key_label,omitempty"` // CKA_LABEL
	KeyID    string    `json:"key_id,omitempty"`    // CKA_ID in hex
	PIN      seal.File `json:"pin"`
}

// String says for people which key it is.
func (p Parameters) String() string {
	var parts []string
	for _, part := range []struct{ name, value string }{
		{"key", p.KeyLabel}, {"key identifier", p.KeyID}, {"token serial", p.Serial}, {"token", p.Label}, {"module", p.Module}, {"PIN in", p.PIN.Name()},
	} {
		if part.value != "" {
			parts = append(parts, part.name+" "+part.value)
		}
	}
	return strings.Join(parts, ", ")
}

// Check tells what is wrong with the parameters: seal.ErrUnsuitable, or nil.
func (p Parameters) Check() error {
	_, err := hex.DecodeString(p.KeyID)
	switch {
	case !filepath.IsAbs(p.Module):
		return fmt.Errorf("%w: module %q is not an absolute path", seal.ErrUnsuitable, p.Module)
	case p.Serial == "" && p.Label == "":
		return fmt.Errorf("%w: neither serial number nor label says which token", seal.ErrUnsuitable)
	case p.KeyLabel == "" && p.KeyID == "":
		return fmt.Errorf("%w: neither label nor identifier says which key", seal.ErrUnsuitable)
	case err != nil:
		return fmt.Errorf("%w: key identifier %q is not hex", seal.ErrUnsuitable, p.KeyID)
	}
	return p.PIN.Check()
}

// Keeper keeps shares encrypted by a token's key. A call cannot be ended by its context: see package helper.
type Keeper struct {
	Parameters
	Secret []byte // the PIN
}

var _ seal.Keeper = Keeper{}

// kept is the stored form of an encrypted share.
type kept struct {
	Mechanism string `json:"mechanism"`
	IV        []byte `json:"iv,omitempty"`
	Share     []byte `json:"share"`

	gcm *pkcs11.GCMParams // while one of its calls is under way
}

// New makes a share and has the token's key encrypt it, an AES key inside the token, an RSA key by its public half.
func (k Keeper) New(ctx context.Context) (share, stored []byte, err error) {
	err = k.with(ctx, func(s *session) error {
		var made *kept
		if share, made, err = s.protect(); err != nil {
			return err
		}
		stored, err = json.Marshal(made)
		return err
	})
	if err != nil {
		clear(share)
		return nil, nil, err
	}
	return share, stored, nil
}

// Share has the token's key decrypt it.
func (k Keeper) Share(ctx context.Context, stored []byte) (share []byte, err error) {
	var made kept
	if err := json.Unmarshal(stored, &made); err != nil {
		return nil, seal.ErrForeign
	}
	err = k.with(ctx, func(s *session) error {
		share, err = s.recover(&made)
		return err
	})
	return share, err
}

// session is a session that is logged in, with the key at hand.
type session struct {
	module  *pkcs11.Ctx
	handle  pkcs11.SessionHandle
	key     pkcs11.ObjectHandle
	keyType uint
}

func (k Keeper) with(ctx context.Context, act func(*session) error) error {
	if err := errors.Join(k.Check(), ctx.Err()); err != nil {
		return err
	}
	module := pkcs11.New(k.Module)
	if module == nil {
		return fmt.Errorf("%w: the module %s cannot be loaded", seal.ErrAbsent, k.Module)
	}
	defer module.Destroy()
	if err := module.Initialize(); err != nil {
		return absent("initialise the module", err)
	}
	defer module.Finalize()
	slot, err := k.slot(module)
	if err != nil {
		return err
	}
	handle, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return absent("open a session", err)
	}
	defer module.CloseSession(handle)
	if err := k.login(module, slot, handle); err != nil {
		return err
	}
	defer module.Logout(handle)
	s := &session{module: module, handle: handle}
	if err := s.find(k.Parameters); err != nil {
		return err
	}
	return act(s)
}

// slot finds the token; serial numbers and labels are padded with spaces (PKCS#11 v2.40, section 3.2).
func (k Keeper) slot(module *pkcs11.Ctx) (uint, error) {
	slots, err := module.GetSlotList(true)
	if err != nil {
		return 0, absent("list the slots", err)
	}
	var found []uint
	for _, slot := range slots {
		info, err := module.GetTokenInfo(slot)
		if err != nil {
			continue // of a token that went away, or a slot that is not ours
		}
		if is(k.Serial, info.SerialNumber) && is(k.Label, info.Label) {
			found = append(found, slot)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("%w: %d tokens of the module %s have serial number %q and label %q", seal.ErrAbsent, len(found), k.Module, k.Serial, k.Label)
	}
	return found[0], nil
}

func is(wanted, padded string) bool {
	return wanted == "" || wanted == strings.TrimRight(padded, " \x00")
}

// login sends the PIN, unless the token has no try to spare (PKCS#11 v2.40, section 3.2, CK_TOKEN_INFO's flags).
func (k Keeper) login(module *pkcs11.Ctx, slot uint, handle pkcs11.SessionHandle) error {
	info, err := module.GetTokenInfo(slot)
	if err != nil {
		return absent("read the token's flags", err)
	}
	if info.Flags&(pkcs11.CKF_USER_PIN_LOCKED|pkcs11.CKF_USER_PIN_FINAL_TRY) != 0 {
		return seal.ErrPINTries
	}
	err = module.Login(handle, pkcs11.CKU_USER, string(k.Secret))
	switch {
	case err == nil:
		return nil
	case is11(err, pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE):
		return seal.ErrPIN
	case is11(err, pkcs11.CKR_PIN_LOCKED):
		return seal.ErrPINTries
	}
	return absent("log in", err)
}

// find looks for exactly one AES key or RSA private key.
func (s *session) find(p Parameters) error {
	var found []pkcs11.ObjectHandle
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY} {
		objects, err := s.search(class, p)
		if err != nil {
			return err
		}
		found = append(found, objects...)
	}
	if len(found) != 1 {
		return fmt.Errorf("%w: %d keys have label %q and identifier %q", seal.ErrAbsent, len(found), p.KeyLabel, p.KeyID)
	}
	attributes, err := s.module.GetAttributeValue(s.handle, found[0], []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, nil), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, nil), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, nil),
	})
	if err != nil {
		return absent("read the key's attributes", err)
	}
	if !isTrue(attributes[1].Value) || isTrue(attributes[2].Value) {
		return fmt.Errorf("%w: the key is not sensitive, or may be extracted from its token", seal.ErrUnsuitable)
	}
	s.key, s.keyType = found[0], number(attributes[0].Value)
	return nil
}

const maxFound = 8

func (s *session) search(class uint, p Parameters) ([]pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	if p.KeyLabel != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, p.KeyLabel))
	}
	if id, _ := hex.DecodeString(p.KeyID); len(id) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	}
	if err := s.module.FindObjectsInit(s.handle, template); err != nil {
		return nil, absent("look for the key", err)
	}
	objects, _, err := s.module.FindObjects(s.handle, maxFound)
	if err = errors.Join(err, s.module.FindObjectsFinal(s.handle)); err != nil {
		return nil, absent("look for the key", err)
	}
	return objects, nil
}

func isTrue(value []byte) bool { return len(value) > 0 && value[0] != 0 }

// number reads a CK_ULONG, which has the machine's byte order and is small here.
func number(value []byte) (n uint) {
	for i := len(value) - 1; i >= 0; i-- {
		n = n<<8 | uint(value[i])
	}
	return n
}

func is11(err error, codes ...uint) bool {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return false
	}
	for _, c := range codes {
		if uint(code) == c {
			return true
		}
	}
	return false
}

func absent(what string, err error) error {
	return fmt.Errorf("%w: %s: %w", seal.ErrAbsent, what, err)
}
