package admin

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"testing"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

func TestCreateKeyForAnotherManager(t *testing.T) {
	s := newScene(t)
	key, err := s.CreateKey(s.ctx, s.alice, KeySpec{Name: "other", Token: "hsm", Manager: enrolled(t, "bob", bobPass)}, token.Ed25519)
	s.noError("create", err)
	bob, _ := s.snapshot().User("bob")
	if g, ok := s.snapshot().KeyGrant(bob.ID, key.ID); !ok || g.Role != users.RoleManager || g.CreatedBy != "alice" {
		t.Errorf("grant %+v, found %v", g, ok)
	}
	signer, err := s.Signer(s.ctx, s.bob, "other")
	s.noError("bob opens the key", err)
	defer signer.Close()
	message := []byte("whole messages, no digests")
	signature, err := signer.Sign(nil, message, &ed25519.Options{})
	if err != nil || !verifies(signer.Public(), message, signature) {
		t.Errorf("signature does not verify (%v)", err)
	}
	_, err = s.Signer(s.ctx, s.alice, "other")
	s.wantError("who made the key for another", err, ErrNotManager)
}

func TestCreateKeyRefuses(t *testing.T) {
	s := newScene(t)
	s.grant(users.RoleManager, typed("bob", bobPass))
	for name, test := range map[string]struct {
		bad       bool
		actor     string
		spec      KeySpec
		algorithm token.Algorithm
		want      error
	}{
		"algorithm that the token lacks": {algorithm: token.RSA2048, want: token.ErrUnsupported},
		"name in use":                    {spec: KeySpec{Name: "release"}, want: users.ErrExists},
		"bad name":                       {spec: KeySpec{Name: "-x"}, want: users.ErrName},
		"unknown token":                  {spec: KeySpec{Token: "none"}, want: users.ErrNotFound},
		"not a token manager":            {actor: "bob", want: ErrNotManager},
		"unknown manager":                {spec: KeySpec{Manager: Grantee{User: "nobody", Enrolment: &access.Enrolment{User: "nobody"}}}, want: users.ErrNotFound},
		"short passphrase":               {spec: KeySpec{Manager: typed("bob", "short")}, want: ErrRequest},
		"private half does not fit":      {bad: true, want: token.ErrMismatch},
	} {
		if test.spec.Name == "" {
			test.spec.Name = "new"
		}
		if test.spec.Token == "" {
			test.spec.Token = "hsm"
		}
		if test.algorithm == "" {
			test.algorithm = token.P256
		}
		actor := s.alice
		if test.actor == "bob" {
			actor = s.bob
		}
		s.device.bad = test.bad
		_, err := s.CreateKey(s.ctx, actor, test.spec, test.algorithm)
		s.wantError(name, err, test.want)
		if len(s.device.keys) != 1 || len(s.snapshot().Keys()) != 1 {
			t.Fatalf("%s: %d keys on the token, %d registered", name, len(s.device.keys), len(s.snapshot().Keys()))
		}
	}
}

// failing is a store whose AddKey fails, before or after it has done its work.
type failing struct {
	users.Store
	after bool
}

var errDisk = errors.New("the disk is full")

func (f failing) AddKey(ctx context.Context, k users.Key, g users.Grant) (users.Key, error) {
	if f.after {
		if _, err := f.Store.AddKey(ctx, k, g); err != nil {
			return users.Key{}, err
		}
	}
	return users.Key{}, errDisk
}

func TestUnregisteredKeyIsTakenBack(t *testing.T) {
	s := newScene(t)
	s.Store = failing{Store: s.Store}
	_, err := s.CreateKey(s.ctx, s.alice, KeySpec{Name: "new", Token: "hsm"}, token.P256)
	s.wantError("create", err, errDisk)
	if len(s.device.keys) != 1 {
		t.Errorf("%d keys on the token", len(s.device.keys))
	}
	s.device.fail("destroy", token.ErrTokenAbsent)
	_, err = s.CreateKey(s.ctx, s.alice, KeySpec{Name: "new", Token: "hsm"}, token.P256)
	s.wantError("create", err, errDisk)
	for id := range s.device.keys {
		if id != string(s.key.TokenKeyID) && !strings.Contains(err.Error(), fmt.Sprintf("%x", id)) {
			t.Errorf("the error does not name what is left: %v", err)
		}
	}
}

func TestKeyRegisteredDespiteAnErrorStays(t *testing.T) {
	s := newScene(t)
	s.Store = failing{Store: s.Store, after: true}
	key, err := s.CreateKey(s.ctx, s.alice, KeySpec{Name: "new", Token: "hsm"}, token.P256)
	s.noError("create", err)
	if _, ok := s.device.keys[string(key.TokenKeyID)]; !ok {
		t.Error("a registered key was destroyed")
	}
}

func TestImportKey(t *testing.T) {
	s := newScene(t)
	_, private, err := ed25519.GenerateKey(nil)
	s.noError("generate", err)
	key, err := s.ImportKey(s.ctx, s.alice, KeySpec{Name: "imported", Token: "hsm"}, private)
	s.noError("import", err)
	if key.Origin != users.OriginImported || key.Algorithm != token.Ed25519 {
		t.Errorf("key %+v", key)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	s.noError("generate", err)
	_, err = s.ImportKey(s.ctx, s.alice, KeySpec{Name: "rsa", Token: "hsm"}, large)
	s.wantError("algorithm that the token lacks", err, token.ErrUnsupported)
	_, err = s.ImportKey(s.ctx, s.alice, KeySpec{Name: "text", Token: "hsm"}, "not a key")
	s.wantError("no key", err, ErrRequest)
}

func TestAdoptKey(t *testing.T) {
	s := newScene(t)
	open, err := s.device.handle()
	s.noError("open", err)
	defer open.Close()
	s.noError("login", open.Login(s.ctx, []byte(firstPIN)))
	for id, label := range map[string]string{"id-1": "old", "id-2": "twin", "id-3": "twin"} {
		_, err := open.Generate(s.ctx, token.KeySpec{ID: []byte(id), Label: label, Algorithm: token.P256})
		s.noError("generate", err)
	}
	adopt := func(name, id, label string) (users.Key, error) {
		return s.AdoptKey(s.ctx, s.alice, AdoptSpec{KeySpec: KeySpec{Name: name, Token: "hsm"}, ID: []byte(id), Label: label})
	}
	key, err := adopt("by label", "", "old")
	s.noError("by label", err)
	if key.Origin != users.OriginAdopted || string(key.TokenKeyID) != "id-1" {
		t.Errorf("key %+v", key)
	}
	_, err = adopt("by id", "id-2", "")
	s.noError("by identifier", err)
	s.noError("alice signs", signs(t, s.Office, s.alice, "by id"))

	_, err = adopt("again", "id-1", "")
	s.wantError("registered already", err, users.ErrExists)
	if err == nil || !strings.Contains(err.Error(), `"by label"`) {
		t.Errorf("the error does not say as what: %v", err)
	}
	_, err = adopt("twin", "", "twin")
	s.wantError("two with this label", err, ErrRequest)
	_, err = adopt("none", "", "none")
	s.wantError("no such label", err, token.ErrNoKey)
	_, err = adopt("none", "none", "")
	s.wantError("no such identifier", err, token.ErrNoKey)
	_, err = adopt("none", "", "")
	s.wantError("nothing named", err, ErrRequest)
	s.device.bad = true
	_, err = adopt("bad", "id-3", "")
	s.wantError("private half does not fit", err, token.ErrMismatch)
	if len(s.device.keys) != 4 {
		t.Errorf("%d keys on the token: adopting destroys nothing", len(s.device.keys))
	}
}

func TestDestroyKey(t *testing.T) {
	s := newScene(t)
	s.grant(users.RoleSigner, typed("bob", bobPass))
	s.wantError("who only signs", s.DestroyKey(s.ctx, s.bob, "release"), ErrNotManager)
	s.device.fail("destroy", token.ErrTokenAbsent)
	s.wantError("token absent", s.DestroyKey(s.ctx, s.alice, "release"), token.ErrTokenAbsent)
	if len(s.snapshot().Keys()) != 1 {
		t.Error("forgotten while it is still there")
	}
	s.device.fail("destroy", nil)
	s.noError("destroy", s.DestroyKey(s.ctx, s.alice, "release"))
	if len(s.device.keys) != 0 || len(s.snapshot().Keys()) != 0 {
		t.Error("something is left")
	}
	s.wantError("again", s.DestroyKey(s.ctx, s.alice, "release"), users.ErrNotFound)

	key, err := s.CreateKey(s.ctx, s.alice, KeySpec{Name: "bob's", Token: "hsm", Manager: typed("bob", bobPass)}, token.P256)
	s.noError("create", err)
	delete(s.device.keys, string(key.TokenKeyID))
	s.noError("the token manager destroys what is gone already", s.DestroyKey(s.ctx, s.alice, "bob's"))
}

func TestAnotherKeyInItsPlaceIsRefused(t *testing.T) {
	s := newScene(t)
	open, err := s.device.handle()
	s.noError("open", err)
	defer open.Close()
	s.noError("login", open.Login(s.ctx, []byte(firstPIN)))
	_, err = open.Generate(s.ctx, token.KeySpec{ID: s.key.TokenKeyID, Label: "swapped", Algorithm: token.P256})
	s.noError("generate", err)
	s.wantError("sign", s.signs(s.alice), token.ErrMismatch)
}
