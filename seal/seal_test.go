package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chancery/users"
)

func secretFile(t testing.TB, size int) string {
	t.Helper()
	random := make([]byte, size)
	rand.Read(random)
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, random, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func wrapped(t testing.TB, keeper Keeper, key *Key) users.Seal {
	t.Helper()
	s := users.Seal{Name: "office", Kind: KindSecret, Parameters: []byte(`{"file":"x"}`)}
	if err := Wrap(t.Context(), keeper, &s, key); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestADataKeyComesBackOutOfItsSeal(t *testing.T) {
	keeper := Secret{File{Path: secretFile(t, 32)}}
	key := NewKey()
	s := wrapped(t, keeper, key)
	again, err := Unwrap(t.Context(), keeper, &s, key.ID())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := key.Seal([]byte("a wrap"), []byte("row 1"))
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := again.Open(sealed, []byte("row 1")); err != nil || string(opened) != "a wrap" {
		t.Errorf("opened %q, %v", opened, err)
	}
	if _, err := again.Open(sealed, []byte("row 2")); !errors.Is(err, users.ErrUnsealedRow) {
		t.Errorf("in another place: %v", err)
	}
	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 1
		if _, err := again.Open(altered, []byte("row 1")); !errors.Is(err, users.ErrUnsealedRow) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
	}
	for _, short := range [][]byte{nil, sealed[:11], sealed[:27]} {
		if _, err := again.Open(short, []byte("row 1")); !errors.Is(err, users.ErrUnsealedRow) {
			t.Errorf("%d bytes: %v", len(short), err)
		}
	}
	other, err := NewKey().Seal([]byte("a wrap"), []byte("row 1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.Open(other, []byte("row 1")); !errors.Is(err, users.ErrUnsealedRow) {
		t.Errorf("of another data key: %v", err)
	}
}

func TestASealIsBoundToWhatItIsSaidToBe(t *testing.T) {
	keeper := Secret{File{Path: secretFile(t, 64)}}
	key := NewKey()
	for name, change := range map[string]func(s *users.Seal, id []byte){
		"name":         func(s *users.Seal, _ []byte) { s.Name = "offic" },
		"kind":         func(s *users.Seal, _ []byte) { s.Kind = KindTPM },
		"parameters":   func(s *users.Seal, _ []byte) { s.Parameters = []byte(`{"file":"y"}`) },
		"shifted":      func(s *users.Seal, _ []byte) { s.Name, s.Kind = "officesec", "ret" },
		"data key":     func(_ *users.Seal, id []byte) { id[0] ^= 1 },
		"cut":          func(s *users.Seal, _ []byte) { s.Wrapped = s.Wrapped[:len(s.Wrapped)-1] },
		"empty":        func(s *users.Seal, _ []byte) { s.Wrapped = nil },
		"a wrong size": func(s *users.Seal, _ []byte) { s.Wrapped[0] = 0xff },
		"what is kept": func(s *users.Seal, _ []byte) { s.Wrapped[5] ^= 1 },
		"last byte":    func(s *users.Seal, _ []byte) { s.Wrapped[len(s.Wrapped)-1] ^= 1 },
	} {
		s, id := wrapped(t, keeper, key), key.ID()
		change(&s, id)
		if _, err := Unwrap(t.Context(), keeper, &s, id); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAClosedKeyIsGone(t *testing.T) {
	key := NewKey()
	raw := key.raw
	sealed, err := key.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if said := fmt.Sprintf("%v %+v %#v %s", key, key, key, key); bytes.Contains([]byte(said), fmt.Appendf(nil, "%x", raw[:4])) {
		t.Errorf("printed as %s", said)
	}
	key.Close()
	key.Close()
	if !bytes.Equal(raw, make([]byte, KeySize)) {
		t.Error("it is not overwritten")
	}
	if _, err := key.Open(sealed, nil); !errors.Is(err, users.ErrSealClosed) {
		t.Errorf("open: %v", err)
	}
	if _, err := key.Seal(nil, nil); !errors.Is(err, users.ErrSealClosed) {
		t.Errorf("seal: %v", err)
	}
	s := users.Seal{Name: "a", Kind: KindSecret}
	if err := Wrap(t.Context(), Secret{File{Path: secretFile(t, 32)}}, &s, key); !errors.Is(err, users.ErrSealClosed) {
		t.Errorf("wrap: %v", err)
	}
}

func TestUnfitSecretFiles(t *testing.T) {
	write := func(mode os.FileMode, content []byte) File {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, content, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return File{Path: path}
	}
	random := make([]byte, 40)
	rand.Read(random)
	for name, c := range map[string]struct {
		file File
		want error
	}{
		"missing":             {File{Path: filepath.Join(t.TempDir(), "none")}, ErrAbsent},
		"a directory":         {File{Path: t.TempDir()}, ErrUnsuitable},
		"short":               {write(0o600, random[:31]), ErrUnsuitable},
		"one byte repeated":   {write(0o600, make([]byte, 32)), ErrUnsuitable},
		"empty":               {write(0o600, nil), ErrUnsuitable},
		"huge":                {write(0o600, make([]byte, 5000)), ErrUnsuitable},
		"readable by a group": {write(0o640, random), ErrUnsuitable},
		"relative":            {File{Path: "secret"}, ErrUnsuitable},
		"nameless":            {File{}, ErrUnsuitable},
		"both":                {File{Path: "/x", Credential: "x"}, ErrUnsuitable},
		"a path as a name":    {File{Credential: "../x"}, ErrUnsuitable},
		"no such credential":  {File{Credential: "none"}, ErrAbsent},
	} {
		if _, _, err := (Secret{c.file}).New(t.Context()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	granted := write(0o440, random)
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(granted.Path))
	if _, _, err := (Secret{File{Credential: "secret"}}).New(t.Context()); err != nil {
		t.Errorf("a credential: %v", err)
	}
}

// opener opens seals whose parameters are a secret's path; "hang" is a keeper that never answers.
func opener(t testing.TB) *Opener {
	t.Helper()
	return NewOpener(Config{Deadline: 50 * time.Millisecond, Keeper: func(_ string, parameters []byte) (Keeper, error) {
		if string(parameters) == "hang" {
			return hanging{}, nil
		}
		return Secret{File{Path: string(parameters)}}, nil
	}})
}

type hanging struct{}

func (hanging) New(ctx context.Context) (share, kept []byte, err error) {
	<-ctx.Done()
	return nil, nil, ErrAbsent
}

func (hanging) Share(ctx context.Context, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("%w: %w", ErrAbsent, ctx.Err())
}

func TestAnyOneSealOpens(t *testing.T) {
	o, key := opener(t), NewKey()
	make1 := func(name string) users.Seal {
		s := users.Seal{Name: name, Kind: KindSecret, Parameters: []byte(secretFile(t, 32))}
		if err := o.Wrap(t.Context(), &s, key); err != nil {
			t.Fatal(err)
		}
		return s
	}
	dead, stuck, good := make1("dead"), make1("stuck"), make1("good")
	if err := os.Remove(string(dead.Parameters)); err != nil {
		t.Fatal(err)
	}
	stuck.Parameters = []byte("hang")
	state := users.SealState{KeyID: key.ID(), Seals: []users.Seal{dead, stuck, good}}
	opened, err := o.OpenSeal(t.Context(), state)
	if err != nil || !bytes.Equal(opened.ID(), key.ID()) {
		t.Fatal(err)
	}
	for name, left := range map[string][]users.Seal{"two that do not open": state.Seals[:2], "none": nil} {
		state.Seals = left
		if _, err := o.OpenSeal(t.Context(), state); !errors.Is(err, users.ErrSealClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzUnwrap(f *testing.F) {
	keeper := Secret{File{Path: secretFile(f, 32)}}
	key := NewKey()
	s := users.Seal{Name: "office", Kind: KindSecret}
	if err := Wrap(context.Background(), keeper, &s, key); err != nil {
		f.Fatal(err)
	}
	f.Add(s.Wrapped)
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, stored []byte) {
		other := s
		other.Wrapped = stored
		opened, err := Unwrap(t.Context(), keeper, &other, key.ID())
		if (err == nil) != bytes.Equal(stored, s.Wrapped) || err == nil && !bytes.Equal(opened.ID(), key.ID()) {
			t.Fatalf("opened %x: %v", stored, err)
		}
	})
}
