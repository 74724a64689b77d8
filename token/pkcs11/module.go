package pkcs11

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// loaded holds the modules in use. Its lock is held while a module is
// initialised or finalised, and while sessions are opened: those calls concern
// the whole process.
//
// The first crypto11 context of a module calls C_Initialize and the last one
// C_Finalize; it does not accept a module that somebody else has initialised.
// A module in use here therefore always has a crypto11 context.
var loaded = struct {
	sync.Mutex
	modules map[string]*module
}{modules: map[string]*module{}}

// module is an initialised module, shared by the Tokens open on it.
type module struct {
	path  string
	api   *p11.Ctx
	users int
	epoch atomic.Uint64 // grows when handles may have gone stale; never 0
}

// acquire counts one more user of a module that a crypto11 context has
// initialised. The caller holds loaded.
func acquire(path string) (*module, error) {
	if m, ok := loaded.modules[path]; ok {
		m.users++
		return m, nil
	}
	api, err := load(path)
	if err != nil {
		return nil, err
	}
	m := &module{path: path, api: api, users: 1}
	m.epoch.Store(1)
	loaded.modules[path] = m
	return m, nil
}

// release counts one user less. The caller holds loaded.
func (m *module) release() {
	m.users--
	if m.users == 0 {
		delete(loaded.modules, m.path)
		m.api.Destroy()
	}
}

// canonical resolves symbolic links, so that one library counts as one module.
func canonical(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("module %s is not installed: %w", path, token.ErrTokenAbsent)
	}
	if err != nil {
		return "", fmt.Errorf("module %s: %w", path, err)
	}
	return filepath.Abs(resolved)
}

func load(path string) (*p11.Ctx, error) {
	api := p11.New(path)
	if api == nil {
		return nil, fmt.Errorf("%s cannot be loaded as a PKCS#11 module: %w", path, token.ErrTokenAbsent)
	}
	return api, nil
}

// withModule runs use on an initialised module, for a moment when no Token has
// it open. The caller holds loaded.
func withModule(path string, use func(api *p11.Ctx) error) error {
	if m, ok := loaded.modules[path]; ok {
		return use(m.api)
	}
	api, err := load(path)
	if err != nil {
		return err
	}
	defer api.Destroy()
	switch err := api.Initialize(); {
	case err == nil:
		defer api.Finalize()
	case hasCode(err, p11.CKR_CRYPTOKI_ALREADY_INITIALIZED):
		// Somebody else's to finalise.
	default:
		return fmt.Errorf("initialise %s: %w", path, err)
	}
	return use(api)
}

// sighting is a token in its slot.
type sighting struct {
	slot       uint
	info       p11.TokenInfo
	mechanisms mechanisms
}

// look finds the one token that cfg selects. The caller holds loaded.
func look(cfg Config) (*sighting, error) {
	var seen *sighting
	err := withModule(cfg.Module, func(api *p11.Ctx) error {
		slot, info, err := find(api, cfg)
		if err != nil {
			return err
		}
		mechanisms, err := readMechanisms(api, slot)
		seen = &sighting{slot: slot, info: info, mechanisms: mechanisms}
		return err
	})
	return seen, err
}

// find returns the slot of the one token that cfg selects.
func find(api *p11.Ctx, cfg Config) (uint, p11.TokenInfo, error) {
	all, err := present(api)
	if err != nil {
		return 0, p11.TokenInfo{}, err
	}
	var fits []candidate
	for _, c := range all {
		if (cfg.Serial == "" || c.info.SerialNumber == cfg.Serial) && (cfg.Label == "" || c.info.Label == cfg.Label) {
			fits = append(fits, c)
		}
	}
	switch len(fits) {
	case 1:
		return fits[0].slot, fits[0].info, nil
	case 0:
		return 0, p11.TokenInfo{}, fmt.Errorf("not among the tokens of %s (%s): %w", cfg.Module, names(all), token.ErrTokenAbsent)
	}
	return 0, p11.TokenInfo{}, fmt.Errorf("%d tokens fit, select one by serial: %s", len(fits), names(fits))
}

type candidate struct {
	slot uint
	info p11.TokenInfo
}

// present lists the initialised tokens. One that cannot be read does not hide the others.
func present(api *p11.Ctx) ([]candidate, error) {
	slots, err := api.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("list slots: %w", err)
	}
	var all []candidate
	for _, slot := range slots {
		info, err := api.GetTokenInfo(slot)
		if err == nil && info.Flags&p11.CKF_TOKEN_INITIALIZED != 0 {
			all = append(all, candidate{slot, info})
		}
	}
	return all, nil
}

func names(candidates []candidate) string {
	if len(candidates) == 0 {
		return "it has none"
	}
	var list []string
	for _, c := range candidates {
		list = append(list, fmt.Sprintf("%q serial %s", c.info.Label, c.info.SerialNumber))
	}
	return strings.Join(list, ", ")
}

// List describes the initialised tokens of a module, without opening any.
func List(modulePath string) ([]token.Info, error) {
	infos, err := list(modulePath)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: list tokens: %w", explained(err))
	}
	return infos, nil
}

func list(modulePath string) ([]token.Info, error) {
	loaded.Lock()
	defer loaded.Unlock()
	path, err := canonical(modulePath)
	if err != nil {
		return nil, err
	}
	var infos []token.Info
	err = withModule(path, func(api *p11.Ctx) error {
		all, err := present(api)
		if err != nil {
			return err
		}
		for _, c := range all {
			info, err := inspect(api, c)
			if err != nil {
				return err
			}
			infos = append(infos, info)
		}
		return nil
	})
	return infos, err
}

func inspect(api *p11.Ctx, c candidate) (token.Info, error) {
	slotInfo, err := api.GetSlotInfo(c.slot)
	if err != nil {
		return token.Info{}, err
	}
	mechanisms, err := readMechanisms(api, c.slot)
	if err != nil {
		return token.Info{}, err
	}
	info := describe(c.info, slotInfo)
	info.Algorithms = mechanisms.algorithms()
	if limit, err := sessionLimit(DefaultMaxSessions, c.info); err == nil {
		info.MaxSessions = limit
	}
	return info, nil
}

// describe translates what the module says of a token (PKCS#11 v2.40 base
// specification, section 3.2). Login state and limits are the caller's.
func describe(t p11.TokenInfo, s p11.SlotInfo) token.Info {
	return token.Info{
		Driver:       driverName,
		Label:        t.Label,
		Serial:       t.SerialNumber,
		Manufacturer: t.ManufacturerID,
		Model:        t.Model,
		Hardware:     s.Flags&p11.CKF_HW_SLOT != 0 && !computesHere(t.ManufacturerID),
		PIN: token.PINState{
			CountLow: t.Flags&p11.CKF_USER_PIN_COUNT_LOW != 0,
			FinalTry: t.Flags&p11.CKF_USER_PIN_FINAL_TRY != 0,
			Locked:   t.Flags&p11.CKF_USER_PIN_LOCKED != 0,
		},
	}
}
