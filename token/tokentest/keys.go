package tokentest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"sync"
	"testing"

	"chancery/token"
)

func testGenerate(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	for _, a := range info(t, fixture.Token).Algorithms {
		t.Run(string(a), func(t *testing.T) {
			tok := driver.fresh(t, fixture).Token
			id := "generated " + string(a)
			key := generate(t, tok, id, a)
			checkKey(t, driver, tok, key, token.KeyInfo{
				ID: []byte(id), Label: "label of " + id, Algorithm: a, Public: key.Public()})
		})
	}
}

// checkKey compares a key with what it should be, finds it again by list and
// by identifier, and signs in every way.
func checkKey(t *testing.T, driver Driver, tok token.Token, key token.Key, want token.KeyInfo) {
	t.Helper()
	checkHalves(t, key, want)
	found := listed(t, tok, want.ID)
	if found.Label != want.Label || found.Algorithm != want.Algorithm || !equal(found.Public, want.Public) {
		t.Errorf("listed as %+v, want %+v", found, want)
	}
	again, err := tok.Key(t.Context(), want.ID)
	if err != nil {
		t.Fatalf("find: %v", err)
	}
	checkHalves(t, again, want)
	message := sha256.Sum256([]byte("message"))
	for _, way := range cases(want.Algorithm) {
		t.Run(way.name, func(t *testing.T) {
			input := way.input(message[:])
			signature, err := again.Sign(t.Context(), input, way.opts)
			if driver.lacks(want.Algorithm, way) {
				wantError(t, "sign", err, token.ErrUnsupported)
				return
			}
			if err != nil {
				t.Fatalf("sign: %v", err)
			}
			if err := way.verify(want.Public, input, signature); err != nil {
				t.Errorf("standard library: %v", err)
			}
			way.verifyWithOpenSSL(t, want.Public, input, signature)
		})
	}
}

func checkHalves(t *testing.T, key token.Key, want token.KeyInfo) {
	t.Helper()
	if !bytes.Equal(key.ID(), want.ID) || key.Algorithm() != want.Algorithm || !equal(key.Public(), want.Public) {
		t.Errorf("key is %q, %s; want %q, %s with the same public half", key.ID(), key.Algorithm(), want.ID, want.Algorithm)
	}
	if a, err := token.AlgorithmOf(key.Public()); err != nil || a != want.Algorithm {
		t.Errorf("public half is %s, %v", a, err)
	}
}

func listed(t *testing.T, tok token.Token, id []byte) token.KeyInfo {
	t.Helper()
	keys, err := tok.Keys(t.Context())
	if err != nil {
		t.Fatalf("keys: %v", err)
	}
	for _, k := range keys {
		if bytes.Equal(k.ID, id) {
			return k
		}
	}
	t.Fatalf("key %q is not listed", id)
	return token.KeyInfo{}
}

func testRefusals(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx, tok := t.Context(), fixture.Token
	offered := info(t, tok).Algorithms
	for _, a := range append(token.Algorithms(), "rsa1024", "") {
		if contains(offered, a) {
			continue
		}
		_, err := tok.Generate(ctx, token.KeySpec{ID: []byte("x"), Label: "x", Algorithm: a})
		wantError(t, "generate "+string(a), err, token.ErrUnsupported)
	}
	a := quick(t, tok)
	for name, spec := range map[string]token.KeySpec{
		"no identifier":    {Label: "x", Algorithm: a},
		"long identifier":  {ID: make([]byte, token.MaxIDLength+1), Label: "x", Algorithm: a},
		"long label":       {ID: []byte("x"), Label: string(make([]byte, token.MaxLabelLength+1)), Algorithm: a},
		"control in label": {ID: []byte("x"), Label: "a\x1b[2J", Algorithm: a},
		"label not UTF-8":  {ID: []byte("x"), Label: "\xff", Algorithm: a},
	} {
		if _, err := tok.Generate(ctx, spec); err == nil {
			t.Errorf("%s: generated", name)
		}
	}
	if keys, err := tok.Keys(ctx); err != nil || len(keys) != 0 {
		t.Errorf("refused keys were made: %v, %v", keys, err)
	}
	for name, id := range map[string][]byte{"absent": []byte("nowhere"), "empty": nil, "long": make([]byte, 500)} {
		_, err := tok.Key(ctx, id)
		wantError(t, "find "+name, err, token.ErrNoKey)
		wantError(t, "destroy "+name, tok.Destroy(ctx, id), token.ErrNoKey)
	}
}

func testKeyExists(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx, tok := t.Context(), fixture.Token
	a := quick(t, tok)
	first := generate(t, tok, "taken", a)
	spec := token.KeySpec{ID: []byte("taken"), Label: "second", Algorithm: a}
	_, err := tok.Generate(ctx, spec)
	wantError(t, "generate", err, token.ErrKeyExists)
	_, err = tok.Import(ctx, spec, privateKey(t, a))
	wantError(t, "import", err, token.ErrKeyExists)
	if k := listed(t, tok, spec.ID); !equal(k.Public, first.Public()) || k.Label == spec.Label {
		t.Error("the first key was replaced")
	}
	if err := signOnce(ctx, first); err != nil {
		t.Errorf("the first key: %v", err)
	}
}

func testImport(t *testing.T, driver Driver) {
	if driver.NoImport {
		testNoImport(t, driver)
		return
	}
	fixture := openLoggedIn(t, driver)
	ctx, tok := t.Context(), fixture.Token
	offered := info(t, tok).Algorithms
	for _, a := range offered {
		t.Run(string(a), func(t *testing.T) {
			tok := driver.fresh(t, fixture).Token
			private := privateKey(t, a)
			id := "imported " + string(a)
			key, err := tok.Import(t.Context(), token.KeySpec{ID: []byte(id), Label: id, Algorithm: a}, private)
			if err != nil {
				t.Fatalf("import: %v", err)
			}
			checkKey(t, driver, tok, key, token.KeyInfo{ID: []byte(id), Label: id, Algorithm: a, Public: private.Public()})
		})
	}
	spec := token.KeySpec{ID: []byte("other"), Label: "other", Algorithm: offered[0]}
	_, err := tok.Import(ctx, spec, privateKey(t, offered[len(offered)-1]))
	wantError(t, "another algorithm's key", err, token.ErrMismatch)
	_, err = tok.Import(ctx, spec, "not a key")
	wantError(t, "not a key", err, token.ErrUnsupported)
}

// testNoImport checks that a token which takes no keys says so, and is left as it was.
func testNoImport(t *testing.T, driver Driver) {
	tok := openLoggedIn(t, driver).Token
	for _, a := range info(t, tok).Algorithms {
		_, err := tok.Import(t.Context(), token.KeySpec{ID: []byte("new"), Label: "new", Algorithm: a}, privateKey(t, a))
		wantError(t, "import "+string(a), err, token.ErrUnsupported)
	}
	if keys, err := tok.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("keys after refusals: %v, %v", keys, err)
	}
	if err := signOnce(t.Context(), generate(t, tok, "new", quick(t, tok))); err != nil {
		t.Errorf("sign: %v", err)
	}
}

func testDestroy(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx, tok := t.Context(), fixture.Token
	var kept token.Key
	if !driver.OneKey {
		kept = generate(t, tok, "kept", quick(t, tok))
	}
	doomed := generate(t, tok, "doomed", quick(t, tok))
	if err := tok.Destroy(ctx, doomed.ID()); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	wantError(t, "sign with the destroyed key", signOnce(ctx, doomed), token.ErrNoKey)
	_, err := tok.Key(ctx, doomed.ID())
	wantError(t, "find the destroyed key", err, token.ErrNoKey)
	wantError(t, "destroy again", tok.Destroy(ctx, doomed.ID()), token.ErrNoKey)
	checkKept(t, tok, kept)
	if driver.OneKey {
		tok = reopen(t, fixture)
		login(t, tok, fixture.PIN)
	}
	reborn := generate(t, tok, "doomed", quick(t, tok))
	if equal(reborn.Public(), doomed.Public()) {
		t.Error("the same key came back")
	}
}

// checkKept checks that a key, or none when it is nil, is all that the token has.
func checkKept(t *testing.T, tok token.Token, kept token.Key) {
	t.Helper()
	keys, err := tok.Keys(t.Context())
	if kept == nil {
		if err != nil || len(keys) != 0 {
			t.Errorf("keys after destroy: %v, %v", keys, err)
		}
		return
	}
	if err != nil || len(keys) != 1 || !bytes.Equal(keys[0].ID, kept.ID()) {
		t.Errorf("keys after destroy: %v, %v", keys, err)
	}
	if err := signOnce(t.Context(), kept); err != nil {
		t.Errorf("the other key: %v", err)
	}
}

func testUnsignable(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx := t.Context()
	digest := sha256.Sum256(nil)
	offered := info(t, fixture.Token).Algorithms
	for _, a := range []token.Algorithm{token.RSA2048, token.P256, token.Ed25519} {
		if !contains(offered, a) {
			continue
		}
		fixture = driver.fresh(t, fixture)
		tok := fixture.Token
		key := generate(t, tok, "key "+string(a), a)
		for name, try := range unsignable(a, digest[:]) {
			_, err := key.Sign(ctx, try.digest, try.opts)
			wantError(t, string(a)+" "+name, err, token.ErrUnsupported)
		}
		if err := signOnce(ctx, key); err != nil {
			t.Errorf("%s after refusals: %v", a, err)
		}
	}
}

type attempt struct {
	digest []byte
	opts   crypto.SignerOpts
}

// unsignable lists inputs that a key must refuse rather than sign as something else.
func unsignable(a token.Algorithm, digest []byte) map[string]attempt {
	if a == token.Ed25519 {
		return map[string]attempt{
			"digest":  {digest, crypto.SHA256},
			"context": {digest, &ed25519.Options{Context: "c"}},
			"nothing": {digest, nil},
		}
	}
	tries := map[string]attempt{
		"no hash":      {digest, crypto.Hash(0)},
		"SHA-1":        {digest[:20], crypto.SHA1},
		"short digest": {digest[:31], crypto.SHA256},
		"long digest":  {append(digest, 0), crypto.SHA256},
		"PSS SHA-3":    {digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA3_256}},
		"PSS salt":     {digest, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}},
		"nothing":      {digest, nil},
	}
	if a.RSABits() == 0 {
		tries["PSS"] = attempt{digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}}
	}
	return tries
}

// importable keeps one private key for each algorithm, since RSA keys take long to make.
var importable struct {
	sync.Mutex
	keys map[token.Algorithm]crypto.Signer
}

func privateKey(t testing.TB, a token.Algorithm) crypto.Signer {
	t.Helper()
	importable.Lock()
	defer importable.Unlock()
	if key, ok := importable.keys[a]; ok {
		return key
	}
	key, err := newPrivateKey(a)
	if err != nil {
		t.Fatal(err)
	}
	if importable.keys == nil {
		importable.keys = map[token.Algorithm]crypto.Signer{}
	}
	importable.keys[a] = key
	return key
}

func newPrivateKey(a token.Algorithm) (crypto.Signer, error) {
	if bits := a.RSABits(); bits != 0 {
		return rsa.GenerateKey(rand.Reader, bits)
	}
	if curve := a.Curve(); curve != nil {
		return newCurveKey(curve)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

// newCurveKey prefers a key whose scalar begins with a zero byte: encodings that
// drop it are a classic way for imports to go wrong.
func newCurveKey(curve elliptic.Curve) (crypto.Signer, error) {
	for range 2000 {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			return nil, err
		}
		if scalar, err := key.Bytes(); err == nil && scalar[0] == 0 {
			return key, nil
		}
	}
	return ecdsa.GenerateKey(curve, rand.Reader)
}
