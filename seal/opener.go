package seal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"chancery/users"
)

// DefaultDeadline is how long one seal may take to open.
const DefaultDeadline = 20 * time.Second

// Config says how seals are opened.
type Config struct {
	// Keeper finds the place that a seal's parameters name.
	Keeper func(kind string, parameters []byte) (Keeper, error)
	// Deadline bounds the opening of one seal. 0: DefaultDeadline.
	Deadline time.Duration
	// Required refuses a database without a seal.
	Required bool
	// Log gets what did not open, and what did. Nil: nothing is logged.
	Log *slog.Logger
}

// Opener opens sealed databases by whichever of their seals works. It implements users.SealOpener.
type Opener struct{ cfg Config }

var _ users.SealOpener = (*Opener)(nil)

// NewOpener returns an Opener.
func NewOpener(cfg Config) *Opener {
	if cfg.Deadline <= 0 {
		cfg.Deadline = DefaultDeadline
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Opener{cfg}
}

// Required tells whether a database without a seal is to be refused.
func (o *Opener) Required() bool { return o.cfg.Required }

// OpenSeal is OpenKey for a users.SealStore.
func (o *Opener) OpenSeal(ctx context.Context, state users.SealState) (users.SealKey, error) {
	key, err := o.OpenKey(ctx, state)
	if err != nil {
		return nil, err
	}
	return key, nil
}

// OpenKey tries the seals, those that cost least first, until one opens. Error: users.ErrSealClosed, with why each did not.
func (o *Opener) OpenKey(ctx context.Context, state users.SealState) (*Key, error) {
	seals := slices.Clone(state.Seals)
	slices.SortStableFunc(seals, func(a, b users.Seal) int { return cost(a.Kind) - cost(b.Kind) })
	var failures []error
	for i := range seals {
		key, err := o.Open(ctx, &seals[i], state.KeyID)
		if err == nil {
			o.cfg.Log.Info("the seal over the database is open", "seal", seals[i].Name, "kind", seals[i].Kind)
			return key, nil
		}
		o.cfg.Log.Warn("a seal over the database does not open", "seal", seals[i].Name, "kind", seals[i].Kind, "error", err)
		failures = append(failures, err)
	}
	if len(seals) == 0 {
		failures = append(failures, errors.New("its seals are gone"))
	}
	return nil, fmt.Errorf("%w: %w", users.ErrSealClosed, errors.Join(failures...))
}

// Open gives the data key with this ID out of one seal.
func (o *Opener) Open(ctx context.Context, s *users.Seal, keyID []byte) (*Key, error) {
	keeper, err := o.cfg.Keeper(s.Kind, s.Parameters)
	if err != nil {
		return nil, describe(s, err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Deadline)
	defer cancel()
	return Unwrap(ctx, keeper, s, keyID)
}

// Wrap has the seal with these parameters keep the data key.
func (o *Opener) Wrap(ctx context.Context, s *users.Seal, key *Key) error {
	keeper, err := o.cfg.Keeper(s.Kind, s.Parameters)
	if err != nil {
		return describe(s, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*o.cfg.Deadline) // it is opened once as well
	defer cancel()
	return Wrap(ctx, keeper, s, key)
}

// cost orders the kinds by what it takes to ask them.
func cost(kind string) int { return slices.Index([]string{KindSecret, KindTPM, KindPKCS11}, kind) }
