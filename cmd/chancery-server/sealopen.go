package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/internal/confine"
	"chancery/seal"
	"chancery/seal/helper"
	"chancery/seal/pkcs11"
	"chancery/seal/tpm"
	"chancery/token/worker"
	"chancery/users"
)

// sealConfig says what is expected of the seal over the database. Which seals there are stands in the database.
type sealConfig struct {
	Required bool          `mapstructure:"required"` // a database without a seal is refused
	Deadline time.Duration `mapstructure:"deadline"` // for opening one seal
	Network  bool          `mapstructure:"network"`  // a PKCS#11 module that is asked for a seal may use the network
}

func (c sealConfig) validate() error {
	if c.Deadline <= 0 {
		return cli.Misconfigured("seal.deadline is %s: more than 0, for example 20s", c.Deadline)
	}
	return nil
}

// sealOpener opens the seal over the database. Log may be nil.
func (c *config) sealOpener(log *slog.Logger) *seal.Opener {
	keepers := &keepers{
		modules: c.Tokens, network: c.Seal.Network, beside: []string{c.State.Directory, c.auditLog().Directory},
		rejected: newRejectedPINs(), log: cmp.Or(log, slog.New(slog.DiscardHandler)),
	}
	return seal.NewOpener(seal.Config{Keeper: keepers.keeper, Deadline: c.Seal.Deadline, Required: c.Seal.Required, Log: log})
}

// keepers finds what a seal's parameters name. They stand in the database, where nothing vouches for them before a seal is
// open: they name only files that nobody else can read, and TPMs and modules that the configuration allows.
type keepers struct {
	modules  tokensConfig
	network  bool
	beside   []string // directories that are copied with the database, so that no secret may lie there
	rejected *rejectedPINs
	log      *slog.Logger
}

func (k *keepers) keeper(kind string, parameters []byte) (seal.Keeper, error) {
	switch kind {
	case seal.KindSecret:
		var file seal.File
		if err := errors.Join(strictly(parameters, &file), file.Check()); err != nil {
			return nil, err
		}
		return seal.Secret{File: file}, k.apart(file)
	case seal.KindTPM:
		var p tpm.Parameters
		if err := errors.Join(strictly(parameters, &p), p.Check()); err != nil {
			return nil, err
		}
		if err := k.modules.mayBeTPM(p.Device); err != nil {
			return nil, err
		}
		if err := notADirectory(p.Device); err != nil {
			return nil, err
		}
		return k.helper(kind, parameters, confine.Rules{Write: []string{p.Device}}), nil
	case seal.KindPKCS11:
		return k.pkcs11(parameters)
	}
	return nil, fmt.Errorf("%w: this version knows no seals of the kind %q", seal.ErrUnsuitable, kind)
}

// mayBeTPM refuses a TPM that only the database names. An emulator of somebody's own would open a database of their own making.
func (c tokensConfig) mayBeTPM(device string) error {
	if device == tpm.DefaultDevice || device == c.TPM {
		return nil
	}
	return fmt.Errorf("%w: the TPM is neither %s nor what the configuration names: set tokens.tpm to %q if that is this machine's TPM",
		seal.ErrUnsuitable, tpm.DefaultDevice, device)
}

// notADirectory keeps whoever writes to the database from having the helper write to a whole tree.
func notADirectory(device string) error {
	if info, err := os.Stat(device); err == nil && info.IsDir() {
		return fmt.Errorf("%w: %s is no device of a TPM", seal.ErrUnsuitable, device)
	}
	return nil // one that is not there is told by who opens it
}

// helper asks a seal's hardware in a process of its own, which keeps the right to what the rules say.
func (k *keepers) helper(kind string, parameters []byte, rules confine.Rules) *helper.Keeper {
	return &helper.Keeper{Command: helperCommand, Kind: kind, Parameters: parameters, Rules: rules, Log: k.log}
}

// apart refuses a secret that a copy of the database would come with. Whoever writes to the database could also name there a file
// whose content they know, such as a short audit log.
func (k *keepers) apart(file seal.File) error {
	path, err := filepath.EvalSymlinks(file.Name())
	if err != nil {
		return nil // reading it tells
	}
	for _, directory := range k.beside {
		directory, err := filepath.EvalSymlinks(directory)
		if err != nil {
			continue // it does not exist, and so holds no secret
		}
		if relative, err := filepath.Rel(directory, path); err == nil && filepath.IsLocal(relative) {
			return fmt.Errorf("%w: %s lies beside the database and goes with every copy of it: keep it elsewhere, such as in /etc/chancery", seal.ErrUnsuitable, file.Name())
		}
	}
	return nil
}

func (k *keepers) pkcs11(parameters []byte) (seal.Keeper, error) {
	var p pkcs11.Parameters
	if err := errors.Join(strictly(parameters, &p), p.Check()); err != nil {
		return nil, err
	}
	var err error
	if p.Module, err = k.modules.module(p.Module); err != nil {
		return nil, err
	}
	if err := k.apart(p.PIN); err != nil {
		return nil, err
	}
	resolved, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	rules := confine.Rules{Write: k.modules.writable(users.Token{Driver: driverPKCS11, Location: p.Module}), Network: k.network}
	return &pinned{parameters: p, helper: *k.helper(seal.KindPKCS11, resolved, rules), rejected: k.rejected}, nil
}

// strictly decodes parameters and accepts nothing that it does not know.
func strictly(parameters []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(parameters))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("%w: its parameters cannot be read", seal.ErrUnsuitable)
	}
	return nil
}

// pinned is a PKCS#11 token, whose PIN is read when it is needed and forgotten at once.
type pinned struct {
	parameters pkcs11.Parameters
	helper     helper.Keeper // without the PIN
	rejected   *rejectedPINs
}

func (p *pinned) New(ctx context.Context) (share, kept []byte, err error) {
	err = p.withPIN(func(k seal.Keeper) error {
		share, kept, err = k.New(ctx)
		return err
	})
	return share, kept, err
}

func (p *pinned) Share(ctx context.Context, kept []byte) (share []byte, err error) {
	err = p.withPIN(func(k seal.Keeper) error {
		share, err = k.Share(ctx, kept)
		return err
	})
	return share, err
}

// withPIN lets one call at a time use the PIN, so that a wrong one is sent once.
func (p *pinned) withPIN(use func(seal.Keeper) error) error {
	pin, err := p.parameters.PIN.Read()
	if err != nil {
		return fmt.Errorf("its PIN: %w", err)
	}
	defer clear(pin)
	trimmed := bytes.TrimRight(pin, "\r\n")
	p.rejected.mu.Lock()
	defer p.rejected.mu.Unlock()
	sum := p.rejected.sum(p.parameters, trimmed)
	if p.rejected.sums[sum] {
		return seal.ErrPINRejected
	}
	knowing := p.helper
	knowing.Secret = trimmed
	err = use(&knowing)
	if errors.Is(err, seal.ErrPIN) {
		p.rejected.sums[sum] = true
	}
	return err
}

// rejectedPINs remembers, as digests under a key that ends with the process, which PINs a token rejected.
type rejectedPINs struct {
	key []byte

	mu   sync.Mutex
	sums map[[sha256.Size]byte]bool
}

func newRejectedPINs() *rejectedPINs {
	key := make([]byte, sha256.Size)
	rand.Read(key)
	return &rejectedPINs{key: key, sums: make(map[[sha256.Size]byte]bool)}
}

func (r *rejectedPINs) sum(p pkcs11.Parameters, pin []byte) [sha256.Size]byte {
	mac := hmac.New(sha256.New, r.key)
	fmt.Fprintf(mac, "%q %q %q ", p.Module, p.Serial, p.Label)
	mac.Write(pin)
	return [sha256.Size]byte(mac.Sum(nil))
}

const helperName = "seal-helper"

// helperCommand starts this program again, under the name that it has, to ask a seal's hardware.
func helperCommand(ctx context.Context) *exec.Cmd {
	program, err := os.Executable()
	if runtime.GOOS == "linux" {
		program, err = "/proc/self/exe", nil // the very program that runs, also after another was installed in its place
	}
	command := exec.CommandContext(ctx, program, helperName)
	command.Args[0], command.Err = os.Args[0], errors.Join(command.Err, err)
	command.Env = worker.Inherited(os.Environ())
	return command
}

func (a *app) sealHelperCommand() *cobra.Command {
	return &cobra.Command{
		Use: helperName, Hidden: true, Args: cli.Args(cobra.NoArgs),
		Short: "Ask a seal's hardware for another process of this program",
		RunE: func(command *cobra.Command, _ []string) error {
			program := helper.Program{Confine: confine.Apply, Keeper: hardware}
			return program.Serve(command.Context(), command.InOrStdin(), command.OutOrStdout())
		},
	}
}

// hardware runs in the helper's process.
func hardware(kind string, parameters, secret []byte) (seal.Keeper, error) {
	switch kind {
	case seal.KindTPM:
		var p tpm.Parameters
		err := strictly(parameters, &p)
		return tpm.Keeper{Parameters: p}, err
	case seal.KindPKCS11:
		var p pkcs11.Parameters
		err := strictly(parameters, &p)
		return pkcs11.Keeper{Parameters: p, Secret: secret}, err
	}
	return nil, seal.ErrUnsuitable
}

// where tells for people what a seal's parameters name.
func where(kind string, parameters []byte) string {
	var file seal.File
	var device tpm.Parameters
	var key pkcs11.Parameters
	text := ""
	switch {
	case kind == seal.KindSecret && strictly(parameters, &file) == nil:
		text = file.Name()
	case kind == seal.KindTPM && strictly(parameters, &device) == nil:
		text = device.String()
	case kind == seal.KindPKCS11 && strictly(parameters, &key) == nil:
		text = key.String()
	}
	return cmp.Or(text, "unknown")
}
