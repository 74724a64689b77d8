package soft_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chancery/token"
	"chancery/token/soft"
)

func loggedIn(t testing.TB, dir string) *soft.Token {
	t.Helper()
	tok := open(t, dir)
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	return tok
}

func generate(t testing.TB, tok token.Token, id string) token.Key {
	t.Helper()
	key, err := tok.Generate(t.Context(), token.KeySpec{ID: []byte(id), Label: "key " + id, Algorithm: token.P256})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(key token.Key) error {
	digest := sha256.Sum256([]byte("x"))
	_, err := key.Sign(context.Background(), digest[:], crypto.SHA256)
	return err
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func keyPath(dir, id string) string {
	return filepath.Join(dir, "keys", hex.EncodeToString([]byte(id))+".json")
}

func TestCreateRefuses(t *testing.T) {
	taken := newToken(t)
	parent := t.TempDir()
	file := filepath.Join(parent, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir, label, pin string
		want            error
	}{
		"short PIN":        {filepath.Join(parent, "a"), "label", "123", token.ErrPINInvalid},
		"long PIN":         {filepath.Join(parent, "b"), "label", strings.Repeat("1", 256), token.ErrPINInvalid},
		"no label":         {filepath.Join(parent, "c"), "", "1234", nil},
		"control in label": {filepath.Join(parent, "d"), "a\nb", "1234", nil},
		"existing token":   {taken, "label", "1234", nil},
		"other files":      {parent, "label", "1234", nil},
		"a file":           {file, "label", "1234", nil},
	} {
		err := soft.Create(c.dir, c.label, []byte(c.pin))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := open(t, taken).Login(t.Context(), pin); err != nil {
		t.Errorf("the existing token was harmed: %v", err)
	}
}

// TestCreate uses the real parameters of Argon2id, once.
func TestCreate(t *testing.T) {
	dir := t.TempDir() // empty, and open to others
	if err := soft.Create(dir, "label", []byte("1234")); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Login(t.Context(), []byte("1234")); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error {
		info, err := os.Lstat(path)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	_, err := soft.Open(filepath.Join(t.TempDir(), "absent"))
	wantError(t, "absent directory", err, token.ErrTokenAbsent)
	_, err = soft.Open(t.TempDir())
	wantError(t, "empty directory", err, token.ErrTokenAbsent)

	dir := newToken(t)
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := soft.Open(dir); err == nil || !strings.Contains(err.Error(), "chmod 0700") {
		t.Errorf("directory open to others: %v", err)
	}
}

// TestTokenDisappears removes and replaces the directory of an open token.
func TestTokenDisappears(t *testing.T) {
	dir, other := newToken(t), newToken(t)
	tok := open(t, dir)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	wantError(t, "login", tok.Login(t.Context(), pin), token.ErrTokenAbsent)
	_, err := tok.Keys(t.Context())
	wantError(t, "keys", err, token.ErrTokenAbsent)
	if err := os.Rename(other, dir); err != nil {
		t.Fatal(err)
	}
	wantError(t, "login to another token in its place", tok.Login(t.Context(), pin), token.ErrTokenAbsent)
}

// TestTwoProcesses has two Tokens on one directory, as a daemon and an
// operator's command have.
func TestTwoProcesses(t *testing.T) {
	dir := newToken(t)
	daemon, operator := loggedIn(t, dir), loggedIn(t, dir)
	made := generate(t, operator, "made later")
	found, err := daemon.Key(t.Context(), made.ID())
	if err != nil {
		t.Fatalf("a key made by another process: %v", err)
	}
	if keys, err := daemon.Keys(t.Context()); err != nil || len(keys) != 1 || keys[0].Label != "key made later" {
		t.Errorf("listed as %+v, %v", keys, err)
	}
	_, err = daemon.Generate(t.Context(), token.KeySpec{ID: made.ID(), Label: "x", Algorithm: token.P256})
	wantError(t, "same identifier", err, token.ErrKeyExists)

	next := []byte("next PIN")
	if err := operator.ChangePIN(t.Context(), pin, next); err != nil {
		t.Fatal(err)
	}
	wantError(t, "change with the old PIN", daemon.ChangePIN(t.Context(), pin, next), token.ErrPINIncorrect)
	wantError(t, "login with the old PIN", open(t, dir).Login(t.Context(), pin), token.ErrPINIncorrect)
	if err := sign(generate(t, daemon, "after the change")); err != nil {
		t.Errorf("the daemon's login: %v", err)
	}

	if err := operator.Destroy(t.Context(), made.ID()); err != nil {
		t.Fatal(err)
	}
	_, err = daemon.Key(t.Context(), made.ID())
	wantError(t, "a key destroyed by another process", err, token.ErrNoKey)
	wantError(t, "and one handed out before", sign(found), token.ErrNoKey)
}

// TestSameIdentifierAtOnce lets several processes race for one identifier.
func TestSameIdentifierAtOnce(t *testing.T) {
	dir := newToken(t)
	results := make(chan error, 8)
	var group sync.WaitGroup
	for range cap(results) {
		tok := loggedIn(t, dir)
		group.Go(func() {
			_, err := tok.Generate(t.Context(), token.KeySpec{ID: []byte("one"), Label: "x", Algorithm: token.Ed25519})
			results <- err
		})
	}
	group.Wait()
	close(results)
	made := 0
	for err := range results {
		if err == nil {
			made++
		} else {
			wantError(t, "late comer", err, token.ErrKeyExists)
		}
	}
	if made != 1 {
		t.Errorf("%d keys were made", made)
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, "keys", ".new-*"))
	if err != nil || len(leftovers) != 0 {
		t.Errorf("left over: %v, %v", leftovers, err)
	}
}

func TestLockedByAnotherProcess(t *testing.T) {
	dir := newToken(t)
	tok := loggedIn(t, dir)
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err = tok.Generate(ctx, token.KeySpec{ID: []byte("a"), Label: "a", Algorithm: token.P256})
	wantError(t, "generate", err, token.ErrBusy)
	wantError(t, "generate", err, context.DeadlineExceeded)
}

// TestAlteredKeyFile changes each field of a key file in turn. The altered key
// must be refused, and its neighbour must go on working.
func TestAlteredKeyFile(t *testing.T) {
	for field, alter := range map[string]func(file, neighbour map[string]any){
		"version":             func(f, _ map[string]any) { f["version"] = 2 },
		"id":                  func(f, n map[string]any) { f["id"] = n["id"] },
		"label":               func(f, _ map[string]any) { f["label"] = "another" },
		"algorithm":           func(f, _ map[string]any) { f["algorithm"] = "p384" },
		"unknown algorithm":   func(f, _ map[string]any) { f["algorithm"] = "p255" },
		"public half":         func(f, n map[string]any) { f["public_key"] = n["public_key"] },
		"private half":        func(f, n map[string]any) { f["private_key"] = n["private_key"] },
		"all but id":          func(f, n map[string]any) { f["public_key"], f["private_key"] = n["public_key"], n["private_key"] },
		"private half absent": func(f, _ map[string]any) { delete(f, "private_key") },
		"public half absent":  func(f, _ map[string]any) { f["public_key"] = "" },
		"unknown field":       func(f, _ map[string]any) { f["extra"] = true },
	} {
		t.Run(field, func(t *testing.T) {
			dir := newToken(t)
			maker := loggedIn(t, dir)
			generate(t, maker, "altered")
			generate(t, maker, "neighbour")
			file, neighbour := readJSON(t, keyPath(dir, "altered")), readJSON(t, keyPath(dir, "neighbour"))
			alter(file, neighbour)
			writeJSON(t, keyPath(dir, "altered"), file)
			checkOnlyNeighbourWorks(t, dir)
			_, err := maker.Key(t.Context(), []byte("altered")) // has the good one in memory
			if err == nil {
				t.Error("the altered file is not looked at")
			}
		})
	}
}

func checkOnlyNeighbourWorks(t *testing.T, dir string) {
	t.Helper()
	tok := loggedIn(t, dir)
	if _, err := tok.Key(t.Context(), []byte("altered")); err == nil {
		t.Error("the altered key opens")
	} else if errors.Is(err, token.ErrNoKey) {
		t.Errorf("the altered key is said to be absent: %v", err)
	}
	key, err := tok.Key(t.Context(), []byte("neighbour"))
	if err != nil {
		t.Fatalf("neighbour: %v", err)
	}
	if err := sign(key); err != nil {
		t.Errorf("neighbour: %v", err)
	}
	keys, err := tok.Keys(t.Context())
	if err != nil || len(keys) == 0 {
		t.Errorf("list: %v, %v", keys, err)
	}
}

// TestStrangeKeyFiles puts things that are no key files in a key file's place.
func TestStrangeKeyFiles(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"empty":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"no JSON":   func(path string) error { return os.WriteFile(path, []byte("\x00\xff"), 0o600) },
		"cut":       func(path string) error { return os.Truncate(path, 100) },
		"huge":      func(path string) error { return os.Truncate(path, 1<<40) },
		"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"FIFO":      func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"link": func(path string) error {
			return errors.Join(os.Rename(path, path+".moved"), os.Symlink(path+".moved", path))
		},
		"twice": func(path string) error {
			data, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, append(data, data...), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newToken(t)
			maker := loggedIn(t, dir)
			generate(t, maker, "altered")
			generate(t, maker, "neighbour")
			if err := plant(keyPath(dir, "altered")); err != nil {
				t.Fatal(err)
			}
			checkOnlyNeighbourWorks(t, dir)
		})
	}
}

// TestKeyOfAnotherToken moves a key file to a token with the same PIN.
func TestKeyOfAnotherToken(t *testing.T) {
	from, to := newToken(t), newToken(t)
	generate(t, loggedIn(t, from), "moved")
	if err := os.Rename(keyPath(from, "moved"), keyPath(to, "moved")); err != nil {
		t.Fatal(err)
	}
	_, err := loggedIn(t, to).Key(t.Context(), []byte("moved"))
	wantError(t, "key of another token", err, token.ErrMismatch)
}

// TestAlteredTokenFile changes token.json; a planted one must not make this
// program spend unbounded memory or time either.
func TestAlteredTokenFile(t *testing.T) {
	kdf := func(field string, value any) func(map[string]any) {
		return func(f map[string]any) { f["kdf"].(map[string]any)[field] = value }
	}
	for name, c := range map[string]struct {
		alter func(map[string]any)
		opens bool // Open succeeds, and Login says that the PIN is wrong
	}{
		"version":        {func(f map[string]any) { f["version"] = 0 }, false},
		"serial":         {func(f map[string]any) { f["serial"] = "0123456789abcdef" }, true},
		"short serial":   {func(f map[string]any) { f["serial"] = "0123" }, false},
		"label":          {func(f map[string]any) { f["label"] = "another" }, true},
		"no label":       {func(f map[string]any) { f["label"] = "" }, false},
		"other kdf":      {kdf("name", "scrypt"), false},
		"short salt":     {kdf("salt", "AAAA"), false},
		"other time":     {kdf("time", 2), true},
		"no time":        {kdf("time", 0), false},
		"long time":      {kdf("time", 17), false},
		"much memory":    {kdf("memory_kib", 1<<20+1), false},
		"little memory":  {kdf("memory_kib", 7), false},
		"no threads":     {kdf("threads", 0), false},
		"many threads":   {kdf("threads", 17), false},
		"memory string":  {kdf("memory_kib", "64"), false},
		"no master key":  {func(f map[string]any) { delete(f, "master_key") }, false},
		"unknown field":  {func(f map[string]any) { f["extra"] = 1 }, false},
		"other fraction": {kdf("time", 1.5), false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newToken(t)
			path := filepath.Join(dir, "token.json")
			file := readJSON(t, path)
			c.alter(file)
			writeJSON(t, path, file)
			tok, err := soft.Open(dir)
			if (err == nil) != c.opens {
				t.Fatalf("open: %v", err)
			}
			if c.opens {
				wantError(t, "login", tok.Login(t.Context(), pin), token.ErrPINIncorrect)
			}
		})
	}
}

// TestNoPINInFiles looks for the PIN in all files.
func TestNoPINInFiles(t *testing.T) {
	dir := newToken(t)
	generate(t, loggedIn(t, dir), "a")
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), string(pin)) {
			t.Errorf("%s has the PIN", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzTokenFile feeds the decoder of token.json, and tries a PIN on whatever
// passes. Costs of Argon2id are bounded by the decoder; dear ones are skipped.
func FuzzTokenFile(f *testing.F) {
	f.Add(readFile(f, filepath.Join(newToken(f), "token.json")))
	f.Add([]byte(`{"version":1,"serial":"0123456789abcdef","label":"x","kdf":{"name":"argon2id","memory_kib":8,"time":1,"threads":1,"salt":"AAAAAAAAAAAAAAAAAAAAAA=="},"master_key":""}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if soft.DecodeTokenFile(data) != nil || len(data) > 1024 || dear(data) {
			return
		}
		if err := soft.OpenTokenFile(data, []byte("not the PIN")); !errors.Is(err, token.ErrPINIncorrect) {
			t.Errorf("a wrong PIN: %v", err)
		}
	})
}

func dear(data []byte) bool {
	var file struct {
		KDF struct {
			Memory uint64 `json:"memory_kib"`
			Time   uint64 `json:"time"`
		} `json:"kdf"`
	}
	return json.Unmarshal(data, &file) != nil || file.KDF.Memory*file.KDF.Time > 1024
}

// FuzzKeyFile feeds the decoder of key files.
func FuzzKeyFile(f *testing.F) {
	dir := newToken(f)
	generate(f, loggedIn(f, dir), "a")
	f.Add(readFile(f, keyPath(dir, "a")), []byte("a"))
	f.Add([]byte(`{"version":1,"id":"61","label":"x","algorithm":"p256","public_key":"MAA=","private_key":""}`), []byte("a"))
	f.Add([]byte(`[]`), []byte{})
	f.Fuzz(func(t *testing.T, data, id []byte) {
		soft.DecodeKeyFile(data, id) // must not panic
	})
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readJSON(t *testing.T, path string) map[string]any {
	t.Helper()
	var file map[string]any
	if err := json.Unmarshal(readFile(t, path), &file); err != nil {
		t.Fatal(err)
	}
	return file
}

func writeJSON(t *testing.T, path string, file map[string]any) {
	t.Helper()
	data, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
