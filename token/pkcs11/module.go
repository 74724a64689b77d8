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

// libraries holds each PKCS#11 library that was asked for, by its canonical path, for good: a configuration names few.
// Its lock is held for a look at the map and over no call into a module.
var libraries = struct {
	sync.Mutex
	byPath map[string]*library
}{byPath: map[string]*library{}}

// library is a PKCS#11 library on the disk. Its lock is held while its module is initialised or finalised, and while
// sessions are opened: those calls concern the whole process. Each library has a lock of its own, so that a module
// which hangs there keeps nobody from another one. Nobody takes two of them.
//
// The first crypto11 context of a module calls C_Initialize and the last one
// C_Finalize; it does not accept a module that somebody else has initialised.
// A module in use here therefore always has a crypto11 context. crypto11 does both under one lock for all modules, so
// that one which hangs in them stops the others all the same. C_Initialize is called here before, by look, without that lock.
type library struct {
	sync.Mutex
	path string
	use  *module // nil while no Token has it open
}

// module is an initialised module, shared by the Tokens open on it.
type module struct {
	library *library
	api     *p11.Ctx
	users   int
	epoch   atomic.Uint64 // grows when handles may have gone stale; never 0
}

// libraryAt returns the one library of a path.
func libraryAt(path string) (*library, error) {
	path, err := canonical(path)
	if err != nil {
		return nil, err
	}
	libraries.Lock()
	defer libraries.Unlock()
	l, ok := libraries.byPath[path]
	if !ok {
		l = &library{path: path}
		libraries.byPath[path] = l
	}
	return l, nil
}

// acquire counts one more user of a module that a crypto11 context has
// initialised. The caller holds the library.
func (l *library) acquire() (*module, error) {
	if l.use != nil {
		l.use.users++
		return l.use, nil
	}
	api, err := load(l.path)
	if err != nil {
		return nil, err
	}
	l.use = &module{library: l, api: api, users: 1}
	l.use.epoch.Store(1)
	return l.use, nil
}

// release counts one user less. The caller holds the library.
func (m *module) release() {
	m.users--
	if m.users == 0 {
		m.library.use = nil
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
// it open. The caller holds the library.
func (l *library) withModule(use func(api *p11.Ctx) error) error {
	if l.use != nil {
		return use(l.use.api)
	}
	api, err := load(l.path)
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
		return fmt.Errorf("initialise %s: %w", l.path, err)
	}
	return use(api)
}

// sighting is a token in its slot.
type sighting struct {
	slot       uint
	info       p11.TokenInfo
	mechanisms mechanisms
}

// look finds the one token that cfg selects. The caller holds the library.
func (l *library) look(cfg Config) (*sighting, error) {
	var seen *sighting
	err := l.withModule(func(api *p11.Ctx) error {
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
	l, err := libraryAt(modulePath)
	if err != nil {
		return nil, err
	}
	l.Lock()
	defer l.Unlock()
	var infos []token.Info
	err = l.withModule(func(api *p11.Ctx) error {
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
