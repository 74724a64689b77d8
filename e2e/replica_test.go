package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/e2e/lab"
	"chancery/softhsm"
	"chancery/softhsm/faulty"
	"chancery/token"
	"chancery/token/pkcs11"
)

// clones are two SoftHSM tokens with the same key, each behind a faulty module of its own.
type clones struct {
	*scene
	primary, twin faulty.Module
}

var cloneID = []byte{0xc1, 0x0e}

// newClones makes a lab whose token "vault" has the replica "twin", and whose key "release" alice may sign with.
func newClones(t *testing.T) *clones {
	t.Helper()
	return newClonesBehind(t, faulty.BuildApart(t), faulty.BuildApart(t))
}

func newClonesBehind(t *testing.T, primary, twin faulty.Module) *clones {
	t.Helper()
	c := &clones{primary: primary, twin: twin}
	c.scene = newLab(t, lab.Driver{Name: lab.SoftHSM.Name, Add: func(l *lab.Lab) {
		t.Setenv("SOFTHSM2_CONF", "") // restores it after the test
		first, err := softhsm.New(t.TempDir(), "vault", []byte(lab.TokenPIN))
		if err != nil {
			t.Fatal(err)
		}
		second, err := first.Store.AddToken("twin", first.PIN)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, first, second)
		l.HSM, l.Environment = first, append(l.Environment, first.Env()...)
		modules := []string{c.primary.Path, c.twin.Path}
		writable := []string{c.primary.Control, c.twin.Control, strings.TrimSuffix(first.Store.Config, "softhsm2.conf") + "tokens"}
		l.Write("server.toml", l.Read("server.toml")+fmt.Sprintf("[tokens]\nmodules = [%q, %q]\nwritable = [%q, %q, %q]\n",
			modules[0], modules[1], writable[0], writable[1], writable[2]))
		l.Operator("token", "add", "vault", "--driver", "pkcs11", "--module", c.primary.Path, "--serial", first.Serial, "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
		l.Operator("key", "adopt", "release", "--token", "vault", "--id", hex.EncodeToString(cloneID), "--passphrase-file", "olga.passphrase")
		l.Operator("token", "add", "twin", "--replica-of", "vault", "--driver", "pkcs11", "--module", c.twin.Path, "--serial", second.Serial, "--passphrase-file", "olga.passphrase")
	}})
	c.Grant("release")
	return c
}

// fill imports one key into all tokens.
func fill(t *testing.T, hsms ...*softhsm.Token) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, hsm := range hsms {
		open, err := pkcs11.Open(pkcs11.Config{Module: hsm.Store.Module, Serial: hsm.Serial})
		if err != nil {
			t.Fatal(err)
		}
		if err := open.Login(t.Context(), hsm.PIN); err != nil {
			t.Fatal(err)
		}
		if _, err := open.Import(t.Context(), token.KeySpec{ID: cloneID, Label: "release", Algorithm: token.P256}, private); err != nil {
			t.Fatal(err)
		}
		if err := open.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// signs has some callers make signatures at once. The client's library verifies each; none may fail.
func (c *clones) signs(t *testing.T, key *client.Key, each int) {
	t.Helper()
	var callers sync.WaitGroup
	for caller := range 8 {
		callers.Go(func() {
			for i := range each {
				digest := sha256.Sum256(fmt.Append(nil, caller, i))
				ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
				_, err := key.SignContext(ctx, digest[:], crypto.SHA256)
				cancel()
				if err != nil {
					t.Errorf("caller %d, signature %d: %v", caller, i, err)
					return
				}
			}
		})
	}
	callers.Wait()
}

// logged counts a message about a member in the server's log.
func (c *clones) logged(message, member string) int {
	n := 0
	for line := range strings.Lines(c.Server.Log.String()) {
		if strings.Contains(line, message) && slices.Contains(strings.Fields(line), "member="+member) {
			n++
		}
	}
	return n
}

// TestOneOfTwoTokensFails lets one of two tokens that hold the same key fail in several ways, under load. Nobody is told, and
// the token is taken back by itself.
func TestOneOfTwoTokensFails(t *testing.T) {
	c := newClones(t)
	c.Serve()
	_, key := c.unlocked(t, "release")
	c.signs(t, key, 10)
	for _, module := range []faulty.Module{c.primary, c.twin} {
		if module.Calls(t, "C_Sign") == 0 {
			t.Fatalf("one of the tokens makes no signatures:\n%s", c.Server.Log)
		}
	}
	for _, failure := range []struct {
		member   string
		module   faulty.Module
		commands string
	}{
		{"vault", c.primary, "return CKR_DEVICE_ERROR C_Sign"},
		{"twin", c.twin, "return CKR_TOKEN_NOT_PRESENT C_Sign,C_OpenSession,C_GetTokenInfo"},
		{"twin", c.twin, "corrupt"},
		{"vault", c.primary, "hang C_Sign"},
	} {
		t.Run(failure.member+" "+failure.commands, func(t *testing.T) {
			leftOut, takenBack := c.logged("is left out", failure.member), c.logged("is taken back", failure.member)
			failure.module.Set(t, failure.commands)
			began := time.Now()
			c.signs(t, key, 20)
			t.Logf("160 signatures in %v", time.Since(began).Round(time.Millisecond))
			c.Eventually(func() bool { return c.logged("is left out", failure.member) > leftOut }, "the token that fails is not left out")
			failure.module.Clear(t)
			c.Eventually(func() bool { return c.logged("is taken back", failure.member) > takenBack }, "the token is not taken back")
			before := failure.module.Calls(t, "C_Sign")
			c.signs(t, key, 10)
			if failure.module.Calls(t, "C_Sign") == before {
				t.Error("the token that was taken back makes no signatures")
			}
		})
	}
	if log := c.Server.Log.String(); strings.Contains(log, "opened anew") {
		t.Errorf("the failure of one token was the whole one's:\n%s", log)
	}
}

// TestTwoTokensBehindOneModule has them share the module and its state. Errors hit whichever is called.
func TestTwoTokensBehindOneModule(t *testing.T) {
	module := faulty.Build(t)
	c := newClonesBehind(t, module, module)
	c.Serve()
	_, key := c.unlocked(t, "release")
	c.signs(t, key, 10)
	module.Set(t, "return CKR_DEVICE_ERROR C_Sign 5")
	c.signs(t, key, 20)
	module.Set(t, "return CKR_SESSION_HANDLE_INVALID C_Sign 5")
	c.signs(t, key, 20)
	for _, member := range []string{"vault", "twin"} {
		c.Eventually(func() bool { return c.logged("is taken back", member) == c.logged("is left out", member) }, member+" is not taken back")
	}
	c.signs(t, key, 10)
}

// TestAReplicaServesWhileThePrimaryIsAway starts the server without the primary, and changes replicas under a running one.
func TestAReplicaServesWhileThePrimaryIsAway(t *testing.T) {
	c := newClones(t)
	c.primary.Set(t, "return CKR_TOKEN_NOT_PRESENT C_OpenSession,C_GetTokenInfo")
	c.Serve()
	_, key := c.unlocked(t, "release")
	c.signs(t, key, 5)
	c.primary.Clear(t)
	c.Eventually(func() bool { return c.logged("is taken back", "vault") > 0 }, "the primary is not taken in")
	c.signs(t, key, 5)

	c.Operator("token", "remove", "twin", "--yes")
	c.Server.WaitLog("the token is open(?s:.*)the token is open")
	before := c.twin.Calls(t, "C_Sign")
	_, key = c.unlocked(t, "release")
	c.signs(t, key, 5)
	if c.twin.Calls(t, "C_Sign") != before {
		t.Error("the replica that was removed signs")
	}
}

// TestThePINOfAllReplicasChanges changes it while the server runs, and refuses to while one of the tokens is away.
func TestThePINOfAllReplicasChanges(t *testing.T) {
	c := newClones(t)
	c.Write("pin2", "the second PIN")
	c.Write("pin3", "the third PIN")
	change := func(to string) lab.Result {
		return c.TryOperator("token", "change-pin", "vault", "--passphrase-file", "olga.passphrase", "--new-pin-file", to)
	}
	if r := change("pin2"); r.Exit != 0 {
		t.Fatal(r.Stderr)
	}
	c.Serve()
	_, key := c.unlocked(t, "release")
	c.signs(t, key, 5)
	c.twin.Set(t, "return CKR_TOKEN_NOT_PRESENT C_OpenSession,C_GetTokenInfo")
	expectation{5, "token_absent", `"twin"`}.check(t, change("pin3"))
	c.twin.Clear(t)
	if r := change("pin3"); r.Exit != 0 {
		t.Fatal(r.Stderr)
	}
	_, key = c.unlocked(t, "release")
	c.signs(t, key, 5)
	c.twin.Set(t, "return CKR_DEVICE_ERROR C_Sign")
	before := c.logged("is taken back", "twin")
	c.signs(t, key, 5)
	c.twin.Clear(t)
	c.Eventually(func() bool { return c.logged("is taken back", "twin") > before }, "the twin is not logged in with the new PIN")
}
