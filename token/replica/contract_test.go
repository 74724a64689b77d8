package replica_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chancery/softhsm"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/replica"
	"chancery/token/soft"
	"chancery/token/tokentest"
)

// cloned is a replica of two SoftHSM tokens with what HSMs bring along for making keys on all of them: the
// contract makes and destroys keys by it.
type cloned struct {
	*replica.Token
	mu        sync.Mutex
	members   map[string]token.Token
	unplugged map[string]bool
}

var driver = tokentest.Driver{Name: "pkcs11", New: func(t testing.TB) *tokentest.Fixture {
	hsms := newSoftHSMs(t)
	return &tokentest.Fixture{
		Token:  openCloned(t, hsms...),
		PIN:    pin,
		Reopen: func(t testing.TB) token.Token { return openCloned(t, hsms...) },
	}
}}

func TestContract(t *testing.T)  { tokentest.Run(t, driver) }
func BenchmarkSign(b *testing.B) { tokentest.BenchmarkSign(b, driver) }

// newSoftHSMs makes two tokens of one store, since a process sees one store only.
func newSoftHSMs(t testing.TB) []*softhsm.Token {
	t.Helper()
	first := softhsm.ForTest(t)
	second, err := first.Store.AddToken("second", first.PIN)
	if err != nil {
		t.Fatal(err)
	}
	return []*softhsm.Token{first, second}
}

func openCloned(t testing.TB, hsms ...*softhsm.Token) *cloned {
	t.Helper()
	c := &cloned{members: make(map[string]token.Token), unplugged: make(map[string]bool)}
	cfg := replica.Config{Serial: hsms[0].Serial, ProbeEvery: 100 * time.Millisecond}
	for _, hsm := range hsms {
		cfg.Members = append(cfg.Members, replica.Member{Name: hsm.Label, Open: func(context.Context) (token.Token, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.unplugged[hsm.Label] {
				return nil, token.ErrTokenAbsent
			}
			tok, err := pkcs11.Open(pkcs11.Config{Module: hsm.Store.Module, Serial: hsm.Serial})
			if err != nil {
				return nil, err
			}
			c.members[hsm.Label] = tok
			return tok, nil
		}})
	}
	var err error
	if c.Token, err = replica.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// each runs f on each member's own token.
func (c *cloned) each(f func(member token.Token) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, member := range c.members {
		if err := f(member); err != nil {
			return err
		}
	}
	return nil
}

// algorithms are those whose keys the contract makes: two kinds of RSA keys tell no more of a replica than one.
var algorithms = []token.Algorithm{token.RSA2048, token.P256, token.Ed25519}

// Info lists what the members make.
func (c *cloned) Info(ctx context.Context) (token.Info, error) {
	info, err := c.Token.Info(ctx)
	if err == nil {
		info.Algorithms = algorithms
	}
	return info, err
}

// Generate makes the key outside, since a software token cannot clone one.
func (c *cloned) Generate(ctx context.Context, spec token.KeySpec) (token.Key, error) {
	if err := token.CheckSpec(spec, algorithms); err != nil {
		return nil, err
	}
	private, err := generate(spec.Algorithm)
	if err != nil {
		return nil, err
	}
	return c.Import(ctx, spec, private)
}

func (c *cloned) Import(ctx context.Context, spec token.KeySpec, private crypto.PrivateKey) (token.Key, error) {
	err := c.each(func(member token.Token) (err error) {
		// SoftHSM sometimes fails to make an object (CKR_GENERAL_ERROR) while others look for objects, here the probes of the replica.
		for range 5 {
			if _, err = member.Import(ctx, spec, private); !errors.Is(err, token.ErrTokenAbsent) {
				break
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.Key(ctx, spec.ID)
}

func (c *cloned) Destroy(ctx context.Context, id []byte) error {
	return c.each(func(member token.Token) error { return member.Destroy(ctx, id) })
}

func generate(a token.Algorithm) (crypto.PrivateKey, error) {
	if bits := a.RSABits(); bits != 0 {
		return rsa.GenerateKey(rand.Reader, bits)
	}
	if curve := a.Curve(); curve != nil {
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

// TestSoftHSMVanishes takes one SoftHSM token away and puts it back, then the other, while clients sign.
func TestSoftHSMVanishes(t *testing.T) {
	hsms := newSoftHSMs(t)
	c := openCloned(t, hsms...)
	if err := c.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	k, err := c.Generate(t.Context(), token.KeySpec{ID: []byte("a"), Label: "a", Algorithm: token.P256})
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{Token: c.Token, key: k}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := sign(t.Context(), k); err != nil {
					t.Errorf("%v", err)
				}
			}
		})
	}
	for member, hsm := range hsms {
		c.plug(t, hsm.Label, false)
		p.await(t, member, replica.StateLeftOut)
		p.mustSign(t, 10)
		c.plug(t, hsm.Label, true)
		p.await(t, member, replica.StateHealthy)
		p.mustSign(t, 10)
	}
	close(stop)
	clients.Wait()
}

// plug takes a member's token away, sessions and login and all, or puts it back. The library itself sees a token's
// directory vanish and return only when it is loaded anew, which needs both tokens closed.
func (c *cloned) plug(t *testing.T, name string, in bool) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unplugged[name] = !in
	if in {
		return
	}
	if err := c.members[name].Close(); err != nil {
		t.Error(err)
	}
}

// TestSoftCopies copies a software token's directory, keys and serial and all.
func TestSoftCopies(t *testing.T) {
	dirs := []string{filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")}
	if err := soft.Create(dirs[0], "first", pin); err != nil {
		t.Fatal(err)
	}
	made, err := soft.Open(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	if err := made.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	if _, err := made.Generate(t.Context(), token.KeySpec{ID: []byte("a"), Label: "a", Algorithm: token.Ed25519}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.CopyFS(dirs[1], os.DirFS(dirs[0])), os.Chmod(dirs[1], 0o700)); err != nil {
		t.Fatal(err)
	}
	cfg := replica.Config{Serial: "0042", CallTimeout: time.Minute}
	for _, dir := range dirs {
		cfg.Members = append(cfg.Members, replica.Member{Name: dir, Open: func(context.Context) (token.Token, error) { return soft.Open(dir) }})
	}
	tok, err := replica.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	k, err := tok.Key(t.Context(), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, []token.Key{k}, 8, 4)
	for _, status := range tok.Members() {
		if status.State != replica.StateHealthy {
			t.Errorf("%+v", status)
		}
	}
}
