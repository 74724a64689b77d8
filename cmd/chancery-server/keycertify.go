package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/artifact/openpgp"
	"chancery/artifact/x509cert"
	"chancery/internal/cli"
	"chancery/tunnel"
	"chancery/users"
)

// certifyFlags say which certificate to make.
type certifyFlags struct {
	openpgp, x509, csr, file string
	usage                    string
	days                     int
}

// any tells whether a certificate is to be made and kept.
func (f *certifyFlags) any() bool { return f.openpgp != "" || f.x509 != "" }

// check refuses what no certificate can be made for. Creating a key asks it before, and so leaves no key behind that was not wanted so.
func (f *certifyFlags) check() error {
	if f.x509 != "" {
		if _, err := x509cert.ParseSubject(f.x509); err != nil {
			return err
		}
	}
	if f.openpgp != "" {
		return openpgp.CheckUserID(f.openpgp)
	}
	return nil
}

func (f *certifyFlags) x509Options(subject string) x509cert.Options {
	return x509cert.Options{Subject: subject, Usage: x509cert.Usage(f.usage), Validity: time.Duration(f.days) * day}
}

func (a *app) keyCertifyCommand() *cobra.Command {
	flags := &certifyFlags{}
	command := &cobra.Command{
		Use: "certify NAME", Short: "Make, request or import a certificate over a key",
		Long: `Make a certificate over a key, signed by the key itself: --openpgp or --x509. Or print a
certificate request for a certification authority (--csr), and keep what it issued (--import).
All but --import sign with the key, and take the passphrase of somebody who may.`,
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(keyNames),
	}
	actor := a.addActor(command, "manager")
	f := command.Flags()
	f.StringVar(&flags.openpgp, "openpgp", "", `user ID of an OpenPGP certificate: "Name <mail>"`)
	f.StringVar(&flags.x509, "x509", "", `subject of a self-signed X.509 certificate: "CN=…,O=…"`)
	f.StringVar(&flags.csr, "csr", "", "subject of a certificate request, which is printed")
	f.StringVar(&flags.file, "import", "", "file with an X.509 (PEM) or OpenPGP (ASCII armour) certificate over this key")
	f.StringVar(&flags.usage, "usage", string(x509cert.CodeSigning), fmt.Sprintf("what X.509 is for: one of %v", x509cert.Usages()))
	f.IntVar(&flags.days, "days", int(x509cert.DefaultValidity/day), "validity of --x509 in days")
	command.MarkFlagsOneRequired("openpgp", "x509", "csr", "import")
	command.MarkFlagsMutuallyExclusive("openpgp", "x509", "csr", "import")
	completeWords(command, "usage", collect(x509cert.Usages(), func(u x509cert.Usage) string { return string(u) })...)
	command.RunE = func(command *cobra.Command, args []string) error {
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			s, err := office.Store.Snapshot(ctx)
			if err != nil {
				return err
			}
			key, err := findKey(s, args[0])
			if err != nil {
				return err
			}
			if flags.file != "" {
				return a.importCertificate(ctx, command, office.Store, key, flags.file)
			}
			signer, err := a.managerOf(s, admin.Target{Key: key.Name}, actor)
			if err != nil {
				return err
			}
			defer signer.Clear()
			return a.certifyKey(ctx, command, office, signer, key, flags)
		})
	}
	return command
}

func (a *app) certifyKey(ctx context.Context, command *cobra.Command, office *admin.Office, actor admin.Actor, key *users.Key, flags *certifyFlags) error {
	if flags.csr != "" {
		return a.requestCertificate(ctx, command, office, actor, key, flags)
	}
	made, err := a.certify(ctx, office, actor, key, flags)
	if err != nil {
		return err
	}
	a.tell(command, "key %q has the %s certificate %s", key.Name, made.Kind, made.Fingerprint)
	a.next(command, "'key export %s --format %s' prints it", key.Name, made.Kind)
	return a.result(command, viewCertificate(made))
}

// certify records and makes each certificate that the flags name, as an act of its own: the first is made and kept where the
// second fails. It returns the last.
func (a *app) certify(ctx context.Context, office *admin.Office, actor admin.Actor, key *users.Key, flags *certifyFlags) (made users.Certificate, err error) {
	if flags.x509 != "" {
		about := certifyAct(actor.User, key, "x509", flags.x509)
		made, err = a.addCertificate(ctx, office, actor, about, func(s crypto.Signer) (users.Certificate, error) { return selfSigned(s, key, flags) })
	}
	if err == nil && flags.openpgp != "" {
		about := certifyAct(actor.User, key, "openpgp", flags.openpgp)
		made, err = a.addCertificate(ctx, office, actor, about, func(s crypto.Signer) (users.Certificate, error) { return openPGP(s, key, flags.openpgp) })
	}
	return made, err
}

// certifyAct is about signatures, too: those in a certificate or a request for one. What is the kind of these.
func certifyAct(user string, key *users.Key, what, subject string) act {
	return act{name: "key.certify", user: user, key: key.Name, details: map[string]string{what: subject, "handle": key.Handle}}
}

// addCertificate records one act and has the key sign a certificate, which it keeps.
func (a *app) addCertificate(ctx context.Context, office *admin.Office, actor admin.Actor, about act, sign func(crypto.Signer) (users.Certificate, error)) (made users.Certificate, err error) {
	err = a.recorded(ctx, about, func() error {
		signer, err := office.Signer(ctx, actor, about.key)
		if err != nil {
			return err
		}
		defer signer.Close()
		certificate, err := sign(signer)
		if err != nil {
			return err
		}
		about.details["fingerprint"] = certificate.Fingerprint // also where it cannot be kept: the key has signed it
		made, err = office.Store.AddCertificate(ctx, certificate)
		return err
	})
	return made, err
}

func selfSigned(signer crypto.Signer, key *users.Key, flags *certifyFlags) (users.Certificate, error) {
	text, err := x509cert.SelfSigned(signer, flags.x509Options(flags.x509))
	if err != nil {
		return users.Certificate{}, err
	}
	return readX509(key, text)
}

// openPGP dates the certificate by the key's registration: the fingerprint depends on the time and
// must not move. So a key has one such certificate.
func openPGP(signer crypto.Signer, key *users.Key, userID string) (users.Certificate, error) {
	for _, c := range key.Certificates {
		if c.Kind == users.CertificateOpenPGP {
			return users.Certificate{}, fmt.Errorf("OpenPGP certificate %s of key %q: %w", c.Fingerprint, key.Name, users.ErrExists)
		}
	}
	options := openpgp.CertificateOptions{UserID: userID, Created: key.CreatedAt.Truncate(time.Second)}
	armored, fingerprint, err := openpgp.NewCertificate(signer, options)
	return users.Certificate{
		KeyID: key.ID, Kind: users.CertificateOpenPGP, Name: key.Name + "-openpgp", Fingerprint: fingerprint, Armored: armored,
	}, err
}

func (a *app) requestCertificate(ctx context.Context, command *cobra.Command, office *admin.Office, actor admin.Actor, key *users.Key, flags *certifyFlags) error {
	var request []byte
	about := certifyAct(actor.User, key, "request", flags.csr)
	err := a.recorded(ctx, about, func() (err error) {
		request, err = makeRequest(ctx, office, actor, key, flags)
		about.details["request_sha256"] = fmt.Sprintf("%x", sha256.Sum256(request))
		return err
	})
	if err != nil {
		return err
	}
	a.next(command, "send this to the certification authority, then 'key certify %s --import FILE' with what it issued", key.Name)
	if a.json {
		return a.result(command, map[string]string{"name": key.Name, "request": string(request)})
	}
	_, err = command.OutOrStdout().Write(request)
	return err
}

func makeRequest(ctx context.Context, office *admin.Office, actor admin.Actor, key *users.Key, flags *certifyFlags) ([]byte, error) {
	signer, err := office.Signer(ctx, actor, key.Name)
	if err != nil {
		return nil, err
	}
	defer signer.Close()
	options := flags.x509Options(flags.csr)
	options.Validity = 0
	return x509cert.Request(signer, options)
}

func (a *app) importCertificate(ctx context.Context, command *cobra.Command, store users.Store, key *users.Key, path string) error {
	content, err := readLimited(path, maxCertificate)
	if err != nil {
		return err
	}
	read := readX509
	if bytes.Contains(content, []byte("BEGIN PGP")) {
		read = readOpenPGP
	}
	certificate, err := read(key, content)
	if err != nil {
		return err
	}
	var added users.Certificate
	about := certifyAct("", key, "imported", certificate.Fingerprint)
	err = a.recorded(ctx, about, func() (err error) {
		added, err = store.AddCertificate(ctx, certificate)
		return err
	})
	if err != nil {
		return err
	}
	a.tell(command, "key %q has the %s certificate %s", key.Name, added.Kind, added.Fingerprint)
	return a.result(command, viewCertificate(added))
}

// readX509 names a certificate by its common name, and a nameless one by its key.
func readX509(key *users.Key, content []byte) (users.Certificate, error) {
	certificate, err := x509cert.Parse(content)
	if err != nil {
		return users.Certificate{}, err
	}
	if err := sameKey(key, certificate.RawSubjectPublicKeyInfo); err != nil {
		return users.Certificate{}, err
	}
	name, err := tunnel.CertificateName(certificate)
	if err != nil {
		name = key.Name + "-x509"
	}
	sum := sha256.Sum256(certificate.Raw)
	return users.Certificate{
		KeyID: key.ID, Kind: users.CertificateX509, Name: name, Fingerprint: strings.ToUpper(hex.EncodeToString(sum[:])),
		Armored: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})),
	}, nil
}

func readOpenPGP(key *users.Key, content []byte) (users.Certificate, error) {
	certificate, err := openpgp.ParseCertificate(content)
	if err != nil {
		return users.Certificate{}, err
	}
	public, err := x509.MarshalPKIXPublicKey(certificate.Public())
	if err != nil {
		return users.Certificate{}, err
	}
	if err := sameKey(key, public); err != nil {
		return users.Certificate{}, err
	}
	return users.Certificate{
		KeyID: key.ID, Kind: users.CertificateOpenPGP, Name: key.Name + "-openpgp",
		Fingerprint: certificate.Fingerprint(), Armored: string(content),
	}, nil
}

func sameKey(key *users.Key, public []byte) error {
	if bytes.Equal(key.Public, public) {
		return nil
	}
	e := cli.Failed("other_key", "the certificate is over another key than %q", key.Name)
	e.Hint = "name the key that it was issued for"
	return e
}
