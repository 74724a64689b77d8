package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"chancery/e2e/lab"
	"chancery/internal/testtool"
	"chancery/swtpm"
	"chancery/token/pkcs11"
)

// attestation is what `key show --attest --json` says.
type attestation struct {
	Verified bool            `json:"verified"`
	Proof    string          `json:"proof"`
	Driver   string          `json:"driver"`
	Claims   map[string]bool `json:"claims"`
}

func (l *scene) attested(t *testing.T, key string) (a attestation) {
	t.Helper()
	if err := json.Unmarshal([]byte(l.Operator("key", "show", key, "--attest", "--json")), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestKeysInATPM signs with keys inside a TPM 2.0, through all three programs, and shows what proves that they are there.
func TestKeysInATPM(t *testing.T) {
	openssl, chip := testtool.Need(t, "openssl"), swtpm.Start(t)
	l := newLab(t, lab.Driver{Name: "tpm", Environment: []string{"CHANCERY_SERVER_TOKENS_TPM=unix:" + chip.Socket}, Add: func(l *lab.Lab) {
		l.Operator("token", "add", "vault", "--driver", "tpm", "--create", "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
	}})
	for _, algorithm := range []string{"rsa2048", "p256", "p384"} {
		l.CreateKey(algorithm, algorithm)
		if a := l.attested(t, algorithm); !a.Verified || a.Driver != "tpm" || !a.Claims["fixed_tpm"] || a.Claims["no_da"] {
			t.Errorf("key %s: %+v", algorithm, a)
		}
	}
	l.Must(openssl, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "own.pem")
	l.Must("chmod", "600", "own.pem")
	l.Operator("key", "import", "imported", "own.pem", "--token", "vault", "--passphrase-file", "olga.passphrase")
	l.Grant("imported")
	if a := l.attested(t, "imported"); a.Verified || a.Claims["sensitive_data_origin"] {
		t.Errorf("an imported key is told to be made by the TPM: %+v", a)
	}
	l.Serve()
	l.Write("document", strings.Repeat("x", 100_000))
	sign := func() {
		l.signRaw(t, openssl, "rsa2048", nil, []string{"dgst", "-sha256"})
		l.signRaw(t, openssl, "p256", nil, []string{"dgst", "-sha256"})
		l.signRaw(t, openssl, "p384", []string{"--hash", "sha384"}, []string{"dgst", "-sha384"})
		l.signRaw(t, openssl, "imported", nil, []string{"dgst", "-sha256"})
	}
	sign()
	objects, sessions := chip.Handles()
	sign()
	if o, s := chip.Handles(); o > objects || s > sessions {
		t.Errorf("%d objects and %d sessions are left in the TPM, before there were %d and %d", o, s, objects, sessions)
	}
	chip.Shutdown()
	chip.Restart() // a power cycle, which the server has to notice by itself
	l.Eventually(func() bool { return l.TryAs("alice", "sign", "raw", "p256", "document", "--force").Exit == 0 }, "no signature after the TPM's power cycle")
	l.Write("new.pin", "another-pin-3141")
	l.Operator("token", "change-pin", "vault", "--by", "olga", "--passphrase-file", "olga.passphrase", "--new-pin-file", "new.pin")
	sign()
}

// TestKeysInATPMWhoseOwnerHasAPassword keeps them under a storage key that was made persistent.
func TestKeysInATPMWhoseOwnerHasAPassword(t *testing.T) {
	openssl, primary := testtool.Need(t, "openssl"), testtool.Need(t, "tpm2_createprimary")
	evict, password := testtool.Need(t, "tpm2_evictcontrol"), testtool.Need(t, "tpm2_changeauth")
	chip := swtpm.Start(t)
	chip.SetEnv()
	l := newLab(t, lab.Driver{Name: "tpm", Environment: []string{"CHANCERY_SERVER_TOKENS_TPM=unix:" + chip.Socket}, Add: func(l *lab.Lab) {
		l.Must(primary, "-C", "o", "-G", "ecc", "-c", "primary.ctx")
		l.Must(evict, "-C", "o", "-c", "primary.ctx", "0x81000001")
		l.Must(password, "-c", "owner", "of the owner")
		l.Operator("token", "add", "vault", "--driver", "tpm", "--create", "--parent", "0x81000001",
			"--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
	}})
	l.CreateKey("p256", "p256")
	l.Serve()
	l.Write("document", "x")
	l.signRaw(t, openssl, "p256", nil, []string{"dgst", "-sha256"})
	if r := l.TryOperator("token", "add", "other", "--driver", "tpm", "--create", "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase"); r.Exit == 0 || !strings.Contains(r.Stderr, "--parent") {
		t.Errorf("a token without a storage key: exit %d, %s", r.Exit, r.Stderr)
	}
}

// TestKeysInATPMThroughPKCS11 does it through tpm2-pkcs11, which has the TPM for itself while it is open.
func TestKeysInATPMThroughPKCS11(t *testing.T) {
	openssl, flush, module := testtool.Need(t, "openssl"), testtool.Need(t, "tpm2_flushcontext"), swtpm.PKCS11Module(t)
	chip := swtpm.Start(t)
	chip.SetEnv()
	serial, err := pkcs11.Initialize(pkcs11.NewTokenConfig{Module: module, Label: "lab", SOPIN: []byte("SO PIN 4711"), PIN: []byte(lab.TokenPIN)})
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, lab.Driver{Name: "tpm2-pkcs11", Add: func(l *lab.Lab) {
		l.Operator("token", "add", "vault", "--driver", "pkcs11", "--module", module, "--serial", serial, "--label", "lab", "--max-sessions", "4",
			"--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
	}})
	for _, algorithm := range []string{"rsa2048", "p256"} {
		l.CreateKey(algorithm, algorithm)
		l.Must(flush, "--transient-object") // of the key that was made, whose process has ended
	}
	l.Serve()
	l.Write("document", "x")
	l.signRaw(t, openssl, "rsa2048", nil, []string{"dgst", "-sha256"})
	l.signRaw(t, openssl, "p256", nil, []string{"dgst", "-sha256"})
}
