package sqlite

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the tables up to date. Another process cannot do so at the same time: see prepare.
func (s *Store) migrate(ctx context.Context) error {
	scripts, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("users/sqlite: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, s.db, scripts, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("users/sqlite: %w", err)
	}
	current, known, err := provider.GetVersions(ctx)
	if err != nil {
		return s.explain(err)
	}
	if current > known {
		return fmt.Errorf("%w: %s has tables of version %d, and this program knows them up to %d: use the newer program", ErrSchema, s.path, current, known)
	}
	if current == known {
		return nil
	}
	if _, err := provider.Up(ctx); err != nil {
		return s.explain(err)
	}
	return nil
}
