package pkcs11

import (
	"errors"
	"fmt"

	p11 "github.com/miekg/pkcs11"
)

// maxLabel is the size of CK_TOKEN_INFO's label.
const maxLabel = 32

// NewTokenConfig describes a token to be initialised.
type NewTokenConfig struct {
	Module string // path of the PKCS#11 library
	Label  string // 1 to 32 bytes
	SOPIN  []byte // of the security officer
	PIN    []byte // of the user
}

// Initialize turns the first slot that has a blank token into a token with a
// label and PINs, and returns its serial (PKCS#11 v2.40 base specification,
// section 5.5, C_InitToken and C_InitPIN). A token that is initialised already is never
// touched. Not every module can do this: many HSMs are initialised with their
// maker's tool.
func Initialize(cfg NewTokenConfig) (serial string, err error) {
	if cfg.Label == "" || len(cfg.Label) > maxLabel {
		return "", fmt.Errorf("pkcs11: initialise token %q: a label has 1 to %d bytes", cfg.Label, maxLabel)
	}
	serial, err = initialize(cfg)
	if err != nil {
		return "", fmt.Errorf("pkcs11: initialise token %q: %w", cfg.Label, explained(err))
	}
	return serial, nil
}

func initialize(cfg NewTokenConfig) (serial string, err error) {
	l, err := libraryAt(cfg.Module)
	if err != nil {
		return "", err
	}
	l.Lock()
	defer l.Unlock()
	err = l.withModule(func(api *p11.Ctx) error {
		slot, err := blankSlot(api)
		if err != nil {
			return err
		}
		if err := api.InitToken(slot, view(cfg.SOPIN), cfg.Label); err != nil {
			return err
		}
		if err := initializePIN(api, slot, cfg); err != nil {
			return err
		}
		info, err := api.GetTokenInfo(slot)
		serial = info.SerialNumber
		return err
	})
	return serial, err
}

func blankSlot(api *p11.Ctx) (uint, error) {
	slots, err := api.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		info, err := api.GetTokenInfo(slot)
		if err == nil && info.Flags&p11.CKF_TOKEN_INITIALIZED == 0 {
			return slot, nil
		}
	}
	return 0, errors.New("no slot has a blank token")
}

// initializePIN sets the first user PIN as security officer.
func initializePIN(api *p11.Ctx, slot uint, cfg NewTokenConfig) error {
	session, err := api.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	defer api.CloseSession(session) // ends the login
	if err := api.Login(session, p11.CKU_SO, view(cfg.SOPIN)); err != nil {
		return err
	}
	return api.InitPIN(session, view(cfg.PIN))
}
