package openpgp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"chancery/internal/testtool"
)

// gpgHome is a throw-away GnuPG home directory.
type gpgHome struct {
	dir     string
	program string
}

// newGPG makes a home whose path is short enough for its agent's socket, and
// ends the agent when the test is over.
func newGPG(t testing.TB) gpgHome {
	t.Helper()
	program, gpgconf := testtool.Need(t, "gpg"), testtool.Need(t, "gpgconf")
	dir, err := os.MkdirTemp("/tmp", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	g := gpgHome{dir: dir, program: program}
	t.Cleanup(func() {
		kill := exec.Command(gpgconf, "--homedir", dir, "--kill", "all")
		kill.Env = g.env()
		_ = kill.Run()
		_ = os.RemoveAll(dir)
	})
	return g
}

func (g gpgHome) env() []string {
	return append(os.Environ(), "GNUPGHOME="+g.dir, "LC_ALL=C")
}

// try runs gpg and returns what it wrote to standard output and standard error.
func (g gpgHome) try(stdin string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(g.program, append([]string{
		"--batch", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "", "--trust-model", "always",
	}, args...)...)
	cmd.Env = g.env()
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (g gpgHome) run(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	stdout, stderr, err := g.try(stdin, args...)
	if err != nil {
		t.Fatalf("gpg %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

func (g gpgHome) file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGPGTakesOurCertificates(t *testing.T) {
	gpg := newGPG(t)
	for _, k := range testKeys() {
		gpg.run(t, k.armored, "--import")
		listing := gpg.run(t, "", "--with-colons", "--check-sigs", k.cert.Fingerprint())
		for _, want := range []string{
			"fpr:::::::::" + k.cert.Fingerprint() + ":",
			"sig:!", // GnuPG's mark of a signature that it verified
			":Release " + k.name + " <release@example.com>:",
			fmt.Sprintf(":%s:%d:", k.cert.KeyID(), created.Unix()),
		} {
			if !strings.Contains(listing, want) {
				t.Errorf("%s: the listing lacks %q:\n%s", k.name, want, listing)
			}
		}
		if strings.Contains(listing, "sig:-") || strings.Contains(listing, "sig:%") {
			t.Errorf("%s: a signature is not valid:\n%s", k.name, listing)
		}
		if capabilities := strings.Split(strings.SplitN(listing, "pub:", 2)[1], ":")[10]; capabilities != "scSC" {
			t.Errorf("%s: capabilities %q, want to certify and sign only", k.name, capabilities)
		}
	}
}

func TestGPGSeesExpiry(t *testing.T) {
	gpg := newGPG(t)
	k := keyNamed(t, "ed25519")
	expires := created.Add(20 * 365 * 24 * time.Hour)
	armored, fingerprint, err := NewCertificate(k.signer, CertificateOptions{UserID: "Short", Created: created, Expires: expires})
	if err != nil {
		t.Fatal(err)
	}
	if fingerprint != k.cert.Fingerprint() {
		t.Errorf("the fingerprint depends on more than key and time: %s and %s", fingerprint, k.cert.Fingerprint())
	}
	gpg.run(t, armored, "--import")
	listing := gpg.run(t, "", "--with-colons", "--list-keys", fingerprint)
	if want := fmt.Sprintf(":%d:%d:", created.Unix(), expires.Unix()); !strings.Contains(listing, want) {
		t.Errorf("the listing lacks %q:\n%s", want, listing)
	}
}

func TestGPGVerifiesOurSignatures(t *testing.T) {
	gpg := newGPG(t)
	for _, k := range testKeys() {
		gpg.run(t, k.armored, "--import")
	}
	for name, document := range documents() {
		for _, k := range testKeys() {
			if name != "plain" && name != "dashes" && k.name != "ed25519" {
				continue // what depends on the key does not depend on the document
			}
			t.Run(name+"/"+k.name, func(t *testing.T) {
				path := gpg.file(t, "document", []byte(document))
				for format, suffix := range map[Format]string{Armored: "asc", Binary: "sig"} {
					signature := gpg.file(t, "document."+suffix, sign(t, k, document, Options{Format: format}))
					gpgAccepts(t, gpg, k, "--verify", signature, path)
				}
				message := gpg.file(t, "message", sign(t, k, document, Options{Format: Cleartext}))
				text := gpgAccepts(t, gpg, k, "--output", "-", "--decrypt", message)
				if want := asSigned(document); text != want {
					t.Errorf("gpg reads %.200q, want %.200q", text, want)
				}
			})
		}
	}
}

// gpgAccepts runs gpg and wants a good signature by this key in its status lines.
func gpgAccepts(t *testing.T, gpg gpgHome, k testKey, args ...string) string {
	t.Helper()
	status := filepath.Join(gpg.dir, "status")
	stdout := gpg.run(t, "", append([]string{"--status-file", status}, args...)...)
	lines, err := os.ReadFile(status)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(lines), "VALIDSIG "+k.cert.Fingerprint()) {
		t.Errorf("gpg %v found no valid signature by %s:\n%s", args, k.name, lines)
	}
	return stdout
}

// asSigned is the text that a cleartext signature of this document is over, as
// a reader gets it.
func asSigned(document string) string {
	var b strings.Builder
	body, last := document, ""
	if i := strings.LastIndexByte(document, '\n'); i >= 0 {
		body, last = document[:i], document[i+1:]
	}
	if strings.TrimRight(last, " \t\r") != "" {
		body = document // what follows the last line ending is a line of its own
	}
	for line := range strings.Lines(body + "\n") {
		b.WriteString(strings.TrimRight(line, " \t\r\n") + "\n")
	}
	return b.String()
}

func TestGPGRefusesWhatWasChanged(t *testing.T) {
	gpg := newGPG(t)
	k := keyNamed(t, "rsa2048")
	gpg.run(t, k.armored, "--import")
	path := gpg.file(t, "document", []byte("changed"))
	signature := gpg.file(t, "document.asc", sign(t, k, "document", Options{}))
	if _, stderr, err := gpg.try("", "--verify", signature, path); err == nil || !strings.Contains(stderr, "BAD signature") {
		t.Errorf("gpg says %v, %s", err, stderr)
	}
}

// TestGPGReadsShortNumbers signs until a raw Ed25519 signature begins with a
// zero byte, which a multiprecision integer drops.
func TestGPGReadsShortNumbers(t *testing.T) {
	gpg := newGPG(t)
	k := keyNamed(t, "ed25519")
	gpg.run(t, k.armored, "--import")
	path := gpg.file(t, "document", []byte("document"))
	for _, offset := range []int{0, 32} {
		for at := created; ; at = at.Add(time.Second) {
			pending, err := New(k.cert, Options{Format: Binary, Time: at})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = pending.Write([]byte("document"))
			hash, message := pending.Digest()
			raw, err := k.signer.Sign(nil, message, hash)
			if err != nil {
				t.Fatal(err)
			}
			if raw[offset] != 0 {
				continue
			}
			signature, err := pending.Finish(raw)
			if err != nil {
				t.Fatal(err)
			}
			gpgAccepts(t, gpg, k, "--verify", gpg.file(t, "document.sig", signature), path)
			break
		}
	}
}

func TestWeVerifyGPG(t *testing.T) {
	gpg := newGPG(t)
	for _, algorithm := range []string{"rsa2048", "nistp256", "nistp384", "nistp521", "ed25519"} {
		t.Run(algorithm, func(t *testing.T) {
			userID := algorithm + " <" + algorithm + "@example.com>"
			gpg.run(t, "", "--quick-generate-key", userID, algorithm, "sign,cert", "2y")
			cert, err := ParseCertificate([]byte(gpg.run(t, "", "--armor", "--export", userID)))
			if err != nil {
				t.Fatal(err)
			}
			if ids := cert.UserIDs(); len(ids) != 1 || ids[0] != userID || cert.Expires().IsZero() {
				t.Errorf("user IDs %q, expires %v", ids, cert.Expires())
			}
			if binary := gpg.run(t, "", "--export", userID); !mustParse(t, binary).sameAs(cert) {
				t.Error("the binary export is another certificate")
			}
			for name, document := range documents() {
				if name == "10 MB" && algorithm != "ed25519" {
					continue // its size has nothing to do with the key
				}
				for _, options := range [][]string{{"--detach-sign"}, {"--armor", "--detach-sign"}, {"--textmode", "--detach-sign"}} {
					if name == "carriage" && options[0] == "--textmode" {
						continue // GnuPG drops carriage returns before a line ending, RFC 9580 does not
					}
					signature := gpg.run(t, document, append([]string{"--local-user", userID}, options...)...)
					verification, err := Verify(cert, []byte(signature), strings.NewReader(document))
					if err != nil {
						t.Errorf("%s, %v: %v", name, options, err)
					} else if verification.Fingerprint != cert.Fingerprint() || time.Since(verification.Time) > time.Hour {
						t.Errorf("%s, %v: %+v", name, options, verification)
					}
				}
				message := gpg.run(t, document, "--local-user", userID, "--clear-sign")
				var text bytes.Buffer
				if _, err := VerifyCleartext(cert, strings.NewReader(message), &text); err != nil {
					t.Errorf("%s in cleartext: %v\n%.300q", name, err, message)
				}
			}
		})
	}
}

func mustParse(t *testing.T, data string) *Certificate {
	t.Helper()
	cert, err := ParseCertificate([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (c *Certificate) sameAs(other *Certificate) bool {
	return c.Fingerprint() == other.Fingerprint() && samePublic(c.Public(), other.Public())
}

func TestWeVerifyGPGSubkeys(t *testing.T) {
	gpg := newGPG(t)
	gpg.run(t, "", "--quick-generate-key", "Subkeys <s@example.com>", "ed25519", "cert", "never")
	fingerprint := mustParse(t, gpg.run(t, "", "--armor", "--export", "s@example.com")).Fingerprint()
	gpg.run(t, "", "--quick-add-key", fingerprint, "rsa2048", "sign", "2y")
	gpg.run(t, "", "--quick-add-key", fingerprint, "cv25519", "encr", "2y")
	cert := mustParse(t, gpg.run(t, "", "--armor", "--export", fingerprint))

	signature := gpg.run(t, "document", "--local-user", fingerprint, "--detach-sign")
	verification, err := Verify(cert, []byte(signature), strings.NewReader("document"))
	if err != nil {
		t.Fatal(err)
	}
	if verification.Fingerprint != fingerprint || verification.SigningKey == fingerprint {
		t.Errorf("the subkey is not named: %+v", verification)
	}
	if _, err := New(cert, Options{}); err == nil {
		t.Error("a primary key that only certifies signs documents")
	}
}

func TestWeRefuseGPGPrivateKeysAndRings(t *testing.T) {
	gpg := newGPG(t)
	gpg.run(t, "", "--quick-generate-key", "One <one@example.com>", "ed25519", "sign", "never")
	gpg.run(t, "", "--quick-generate-key", "Two <two@example.com>", "ed25519", "sign", "never")
	for name, data := range map[string]string{
		"private key":        gpg.run(t, "", "--armor", "--export-secret-keys", "one@example.com"),
		"binary private key": gpg.run(t, "", "--export-secret-keys", "one@example.com"),
		"two certificates":   gpg.run(t, "", "--armor", "--export"),
		"two binary ones":    gpg.run(t, "", "--export"),
		"two blocks": gpg.run(t, "", "--armor", "--export", "one@example.com") +
			gpg.run(t, "", "--armor", "--export", "two@example.com"),
	} {
		if _, err := ParseCertificate([]byte(data)); err == nil {
			t.Errorf("%s: taken for a certificate", name)
		}
	}
}

func TestWeSeeGPGRevocation(t *testing.T) {
	gpg := newGPG(t)
	gpg.run(t, "", "--quick-generate-key", "Revoked <r@example.com>", "ed25519", "sign", "never")
	before := mustParse(t, gpg.run(t, "", "--armor", "--export", "r@example.com"))
	signature := gpg.run(t, "document", "--detach-sign")

	revocation, err := os.ReadFile(filepath.Join(gpg.dir, "openpgp-revocs.d", before.Fingerprint()+".rev"))
	if err != nil {
		t.Fatal(err)
	}
	// GnuPG puts a colon before the armour so that it is not imported by accident.
	gpg.run(t, strings.ReplaceAll(string(revocation), ":-----", "-----"), "--import")
	after := mustParse(t, gpg.run(t, "", "--armor", "--export", "r@example.com"))
	if before.Revoked() || !after.Revoked() {
		t.Errorf("revoked before %v, after %v", before.Revoked(), after.Revoked())
	}
	verification, err := Verify(after, []byte(signature), strings.NewReader("document"))
	if !isError(err, ErrRevoked) || verification == nil {
		t.Errorf("Verify returned %+v, %v", verification, err)
	}
	if _, err := New(after, Options{}); !isError(err, ErrRevoked) {
		t.Errorf("New returned %v", err)
	}
}

func TestWeRefuseGPGSHA1(t *testing.T) {
	gpg := newGPG(t)
	gpg.run(t, "", "--quick-generate-key", "Old <old@example.com>", "rsa2048", "sign", "never")
	cert := mustParse(t, gpg.run(t, "", "--export", "old@example.com"))
	signature := gpg.run(t, "document", "--digest-algo", "SHA1", "--detach-sign")
	if _, err := Verify(cert, []byte(signature), strings.NewReader("document")); !isError(err, ErrSignature) {
		t.Errorf("Verify returned %v", err)
	}
}

// TestASignatureOnTheKeyLetsItExpire: the owner may set the expiry there instead of in a user ID's self-signature.
func TestASignatureOnTheKeyLetsItExpire(t *testing.T) {
	k := keyNamed(t, "ed25519")
	signature := sign(t, k, "document", Options{})
	onKey := func(at time.Time, lifetime time.Duration) []byte {
		extra := appendSubpacket(nil, subpacketKeyFlags, []byte{packet.KeyFlagCertify | packet.KeyFlagSign})
		extra = appendSubpacket(extra, subpacketKeyExpirationTime, binary.BigEndian.AppendUint32(nil, uint32(lifetime.Seconds())))
		return selfSign(t, k, packet.SigTypeDirectSignature, at, extra, func(w io.Writer) {
			_ = k.cert.entity.PrimaryKey.SerializeForHash(w)
		})
	}
	expired := onKey(created.Add(2*time.Second), time.Minute)
	forged := onKey(created.Add(3*time.Second), time.Hour)
	forged[len(forged)-1] ^= 1
	for name, test := range map[string]struct {
		signatures []byte
		want       time.Time
	}{
		"one":              {expired, created.Add(time.Minute)},
		"and an older one": {append(onKey(created, 1000*time.Hour), expired...), created.Add(time.Minute)},
		"and a forged one": {append(bytes.Clone(forged), expired...), created.Add(time.Minute)},
		"one without end":  {onKey(created, 0), time.Time{}},
	} {
		cert := certificateWith(t, k, nil, test.signatures, false)
		if !cert.Expires().Equal(test.want) {
			t.Errorf("%s: expires %v, not %v", name, cert.Expires(), test.want)
		}
		_, err := Verify(cert, signature, strings.NewReader("document"))
		if expires := !test.want.IsZero(); expires != isError(err, ErrExpired) || !expires && err != nil {
			t.Errorf("%s: Verify returned %v", name, err)
		}
	}
	cert, err := packetsOf(publicKeyBlock, []byte(k.armored))
	if err != nil {
		t.Fatal(err)
	}
	gpg := newGPG(t)
	gpg.run(t, string(armorBlock(publicKeyBlock, slices.Insert(cert, 2+int(cert[1]), expired...))), "--import")
	status, _, _ := gpg.try("", "--status-fd", "1", "--verify", gpg.file(t, "signature", signature), gpg.file(t, "document", []byte("document")))
	if !strings.Contains(status, "EXPKEYSIG") {
		t.Errorf("GnuPG says otherwise: %s", status)
	}
}
