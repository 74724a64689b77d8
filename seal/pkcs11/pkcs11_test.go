package pkcs11_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"chancery/internal/testtool"
	"chancery/seal"
	"chancery/seal/pkcs11"
	"chancery/softhsm"
)

// token makes a token with an AES key "aes" and an RSA key "rsa".
func token(t *testing.T) *softhsm.Token {
	t.Helper()
	tool := testtool.Need(t, "pkcs11-tool")
	made := softhsm.ForTest(t)
	for _, arguments := range [][]string{
		{"--keygen", "--key-type", "AES:32", "--label", "aes", "--id", "01", "--sensitive"},
		{"--keypairgen", "--key-type", "rsa:2048", "--label", "rsa", "--id", "02", "--sensitive", "--usage-decrypt"},
		{"--keygen", "--key-type", "AES:32", "--label", "loose", "--id", "03", "--extractable"},
	} {
		arguments = append([]string{"--module", made.Store.Module, "--token-label", made.Label, "--login", "--pin", string(made.PIN)}, arguments...)
		if output, err := exec.Command(tool, arguments...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	return made
}

func keeper(made *softhsm.Token, key string) pkcs11.Keeper {
	return pkcs11.Keeper{Secret: made.PIN, Parameters: pkcs11.Parameters{
		Module: made.Store.Module, Serial: made.Serial, KeyLabel: key, PIN: seal.File{Path: "/pin"},
	}}
}

func TestATokensKeyKeepsAShare(t *testing.T) {
	made := token(t)
	check := func(t *testing.T, k pkcs11.Keeper, share, kept []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if len(share) != seal.ShareSize || bytes.Contains(kept, share) {
			t.Fatalf("share of %d bytes, kept as %s", len(share), kept)
		}
		if again, err := k.Share(t.Context(), kept); err != nil || !bytes.Equal(again, share) {
			t.Errorf("gave %d bytes, %v", len(again), err)
		}
	}
	for _, key := range []string{"aes", "rsa"} {
		t.Run(key, func(t *testing.T) {
			k := keeper(made, key)
			share, kept, err := k.New(t.Context())
			check(t, k, share, kept, err)
		})
	}
	for way, key := range map[string]string{"AES-GCM": "aes", "AES-CBC-PAD": "aes", "RSA-OAEP-SHA1": "rsa"} {
		t.Run(way, func(t *testing.T) {
			k := keeper(made, key)
			share, kept, err := k.NewBy(t.Context(), way)
			check(t, k, share, kept, err)
		})
	}
}

func TestAlteredSharesAreForeign(t *testing.T) {
	made := token(t)
	for _, key := range []string{"aes", "rsa"} {
		k := keeper(made, key)
		_, kept, err := k.New(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var object map[string]any
		var bytesOf struct{ Share []byte }
		if err := errors.Join(json.Unmarshal(kept, &object), json.Unmarshal(kept, &bytesOf)); err != nil {
			t.Fatal(err)
		}
		bytesOf.Share[len(bytesOf.Share)-1] ^= 1
		object["share"] = bytesOf.Share
		altered, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Share(t.Context(), altered); !errors.Is(err, seal.ErrForeign) {
			t.Errorf("%s: %v", key, err)
		}
		for _, junk := range []string{"", "{}", `{"mechanism":"none"}`} {
			if _, err := k.Share(t.Context(), []byte(junk)); !errors.Is(err, seal.ErrForeign) {
				t.Errorf("%s: %q: %v", key, junk, err)
			}
		}
	}
}

func TestWhatCannotKeepAShare(t *testing.T) {
	made := token(t)
	for name, c := range map[string]struct {
		change func(*pkcs11.Keeper)
		want   error
	}{
		"no such module":    {func(k *pkcs11.Keeper) { k.Module = filepath.Join(t.TempDir(), "none.so") }, seal.ErrAbsent},
		"no such token":     {func(k *pkcs11.Keeper) { k.Serial = "none" }, seal.ErrAbsent},
		"no such key":       {func(k *pkcs11.Keeper) { k.KeyLabel = "none" }, seal.ErrAbsent},
		"another key ID":    {func(k *pkcs11.Keeper) { k.KeyID = "02" }, seal.ErrAbsent},
		"extractable":       {func(k *pkcs11.Keeper) { k.KeyLabel = "loose" }, seal.ErrUnsuitable},
		"relative module":   {func(k *pkcs11.Keeper) { k.Module = "x.so" }, seal.ErrUnsuitable},
		"no token named":    {func(k *pkcs11.Keeper) { k.Serial = "" }, seal.ErrUnsuitable},
		"no key named":      {func(k *pkcs11.Keeper) { k.KeyLabel = "" }, seal.ErrUnsuitable},
		"ID that isn't hex": {func(k *pkcs11.Keeper) { k.KeyID = "xy" }, seal.ErrUnsuitable},
		"a wrong PIN":       {func(k *pkcs11.Keeper) { k.Secret = []byte("wrong PIN") }, seal.ErrPIN},
	} {
		k := keeper(made, "aes")
		c.change(&k)
		if _, _, err := k.New(t.Context()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
