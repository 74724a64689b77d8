package admin

import (
	"context"
	"fmt"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// TokenSpec says which token to register.
type TokenSpec struct {
	Name     string // Chancery's name for it
	Driver   string // "pkcs11" or "soft"
	Location string // pkcs11: the module's path; soft: the directory
	// Serial and Label select one of several tokens behind Location; both may be empty.
	Serial      string
	Label       string
	MaxSessions int // 0: the driver's default
}

// AddToken registers a token and its first token manager. The PIN is checked by one login, unless
// the token says that a wrong one would lock it, and from then on exists only inside grants. The
// grantee needs a passphrase or an enrolment. Errors: users.ErrExists for a name
// or a serial number that is registered already; users.ErrFinalTry and token.ErrPINLocked before the
// PIN is sent; token.ErrPINIncorrect, token.ErrTokenAbsent.
func (o *Office) AddToken(ctx context.Context, spec TokenSpec, pin []byte, first Grantee) (users.Token, error) {
	if err := checkPIN(pin); err != nil {
		return users.Token{}, err
	}
	to, err := o.recipient(first, "")
	if err != nil {
		return users.Token{}, err
	}
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return users.Token{}, err
	}
	user, err := checkNewToken(s, spec, to.name)
	if err != nil {
		return users.Token{}, err
	}
	record := spec.record()
	info, err := o.verify(ctx, record, pin)
	if err != nil {
		return users.Token{}, err
	}
	record.Driver, record.Serial, record.Label, record.Hardware = info.Driver, info.Serial, info.Label, info.Hardware
	grant := users.Grant{UserID: user.ID, Role: users.RoleTokenManager, CreatedBy: CreatedByOperator}
	binding := access.Binding{TokenSerial: record.Serial, User: user.Name, Role: string(grant.Role)}
	if err := seal(&grant, to.key, users.PINs{Current: pin}, binding); err != nil {
		return users.Token{}, err
	}
	return o.Store.AddToken(ctx, record, grant)
}

// record is what the token is opened by the first time.
func (t TokenSpec) record() users.Token {
	return users.Token{Name: t.Name, Driver: t.Driver, Location: t.Location, Serial: t.Serial, Label: t.Label, MaxSessions: t.MaxSessions}
}

func checkNewToken(s *users.Snapshot, spec TokenSpec, manager string) (*users.User, error) {
	if err := checkNewHome(s, spec.Name); err != nil {
		return nil, err
	}
	return enabledUser(s, manager)
}

func checkPIN(pin []byte) error {
	if len(pin) == 0 || len(pin) > access.MaxPINSize {
		return fmt.Errorf("%w: a PIN has 1 to %d bytes", ErrRequest, access.MaxPINSize)
	}
	return nil
}

// verify opens a token for itself alone, logs in with a PIN that somebody typed, and closes it.
func (o *Office) verify(ctx context.Context, record users.Token, pin []byte) (token.Info, error) {
	open, err := o.open(ctx, record)
	if err != nil {
		return token.Info{}, err
	}
	defer open.Close()
	info, err := checkOpen(ctx, record, open)
	if err != nil {
		return token.Info{}, err
	}
	return info, logIn(ctx, record, open, pin)
}

// checkOpen asks a token that was opened by a record what it is, and whether a PIN can be checked there.
func checkOpen(ctx context.Context, record users.Token, open token.Token) (token.Info, error) {
	info, err := open.Info(ctx)
	if err != nil {
		return token.Info{}, fmt.Errorf("admin: token %q: %w", record.Name, err)
	}
	switch {
	case info.Serial == "":
		return token.Info{}, fmt.Errorf("%w: token %q has no serial number, and grants are bound to one", ErrRequest, record.Name)
	case record.Serial != "" && record.Serial != info.Serial:
		return token.Info{}, fmt.Errorf("admin: token %q: %w: the one that is there has the serial number %q, not %q", record.Name, token.ErrTokenAbsent, info.Serial, record.Serial)
	case info.LoggedIn:
		return token.Info{}, fmt.Errorf("admin: token %q: %w: it is logged in already, so that a PIN cannot be checked", record.Name, token.ErrBusy)
	}
	return info, nil
}

// logIn tries a PIN, unless the token says that a wrong one would lock it.
func logIn(ctx context.Context, record users.Token, open token.Token, pin []byte) error {
	if err := users.MayTry(ctx, record.Name, open); err != nil {
		return err
	}
	if err := open.Login(ctx, pin); err != nil {
		return fmt.Errorf("admin: token %q: %w", record.Name, err)
	}
	return nil
}

func (o *Office) open(ctx context.Context, record users.Token) (token.Token, error) {
	open, err := o.Open(ctx, record)
	if err != nil {
		return nil, fmt.Errorf("admin: token %q: %w", record.Name, err)
	}
	return open, nil
}

// openFor opens a token and logs in with what a proof has unwrapped. The caller closes it.
func (o *Office) openFor(ctx context.Context, p *proof) (token.Token, error) {
	open, err := o.open(ctx, p.token)
	if err != nil {
		return nil, err
	}
	if err := users.Login(ctx, o.Store, p.token, open, p.pins); err != nil {
		open.Close()
		return nil, err
	}
	return open, nil
}

// Inspect asks a registered token, without login, for its present description and the keys that it shows.
func (o *Office) Inspect(ctx context.Context, name string) (token.Info, []token.KeyInfo, error) {
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return token.Info{}, nil, err
	}
	record, err := namedToken(s, name)
	if err != nil {
		return token.Info{}, nil, err
	}
	open, err := o.open(ctx, *record)
	if err != nil {
		return token.Info{}, nil, err
	}
	defer open.Close()
	info, err := open.Info(ctx)
	if err != nil {
		return token.Info{}, nil, err
	}
	keys, err := open.Keys(ctx)
	return info, keys, err
}
