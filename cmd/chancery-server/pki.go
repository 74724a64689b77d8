package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/pki"
	"chancery/tunnel"
)

const (
	caName         = "ca"
	maxCertificate = 1 << 20 // bytes
	day            = 24 * time.Hour
)

type pairView struct {
	Kind        string          `json:"kind"`
	Certificate string          `json:"certificate"`
	PrivateKey  string          `json:"private_key"`
	Details     x509Description `json:"details"`
}

type x509Description struct {
	CommonName  string    `json:"common_name"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Expired     bool      `json:"expired"`
	Uses        []string  `json:"uses"`
	Hosts       []string  `json:"hosts"`
	Fingerprint string    `json:"fingerprint"` // upper-case hex SHA-256 of the DER
}

func (a *app) pkiCommand() *cobra.Command {
	parent := family("pki", "Make certificates for those who have no CA", a.pkiInitCommand(), a.pkiIssueCommand(), a.pkiShowCommand())
	parent.Long = `Make a certification authority and the certificates of bridge, servers and clients.

Whoever has the CA's private key can be any user: make it on a machine that is
not the bridge, and keep it offline. These commands need no configuration.`
	return parent
}

func (a *app) pkiInitCommand() *cobra.Command {
	var name string
	var days int
	command := &cobra.Command{
		Use: "init DIR", Short: "Make a certification authority: DIR/ca.crt and DIR/ca.key",
		Args: cli.Args(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			validity, err := validityOf(days)
			if err != nil {
				return err
			}
			ca, err := pki.NewCA(pki.CAOptions{CommonName: name, Validity: validity})
			if err != nil {
				return err
			}
			certificate, key, err := ca.Write(args[0], caName)
			if err != nil {
				return err
			}
			a.tell(command, "certification authority written to %s and %s", certificate, key)
			a.next(command, "'pki issue bridge HOST --out %s', then the same for each server and client; keep %s offline", args[0], key)
			return a.result(command, pairView{Kind: "ca", Certificate: certificate, PrivateKey: key, Details: describe(ca.Certificate())})
		},
	}
	command.Flags().StringVar(&name, "name", "Chancery CA", "the authority's Common Name")
	command.Flags().IntVar(&days, "days", int(pki.DefaultCAValidity/day), "validity in days")
	return command
}

// issueFlags are what `pki issue` was told.
type issueFlags struct {
	hosts   []string
	out, ca string
	days    int
}

func (a *app) pkiIssueCommand() *cobra.Command {
	var flags issueFlags
	command := &cobra.Command{
		Use: "issue bridge|server|client NAME", Short: "Issue a certificate: NAME.crt and NAME.key",
		Long: `Issue a certificate and its private key as NAME.crt and NAME.key.

NAME is the Common Name: for a client the user's name, for a server the name that
the bridge's configuration lists. Bridge and server are reached under NAME unless
--host gives other names or addresses.`,
		Args: cli.Args(cobra.ExactArgs(2)), ValidArgs: []cobra.Completion{string(pki.Bridge), string(pki.Server), string(pki.Client)},
		RunE: func(command *cobra.Command, args []string) error {
			return a.issue(command, pki.Kind(args[0]), args[1], &flags)
		},
	}
	command.Flags().StringArrayVar(&flags.hosts, "host", nil, "DNS name or IP address of a bridge or server (may be repeated)")
	command.Flags().StringVar(&flags.out, "out", ".", "directory for the two files")
	command.Flags().StringVar(&flags.ca, "ca", "", "directory of ca.crt and ca.key (default: that of --out)")
	command.Flags().IntVar(&flags.days, "days", int(pki.DefaultLeafValidity/day), "validity in days")
	return command
}

func (a *app) issue(command *cobra.Command, kind pki.Kind, name string, flags *issueFlags) error {
	validity, err := validityOf(flags.days)
	if err != nil {
		return err
	}
	if flags.ca == "" {
		flags.ca = flags.out
	}
	ca, err := loadCA(flags.ca)
	if err != nil {
		return err
	}
	if kind != pki.Client && len(flags.hosts) == 0 {
		flags.hosts = []string{name}
	}
	certificatePEM, keyPEM, err := ca.Issue(pki.Request{Kind: kind, CommonName: name, Hosts: flags.hosts, Validity: validity})
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	certificate, key, err := pki.WritePair(flags.out, name, certificatePEM, keyPEM)
	if err != nil {
		return err
	}
	parsed, err := parseCertificate(certificatePEM, certificate)
	if err != nil {
		return err
	}
	a.tell(command, "%s certificate for %q written to %s and %s", kind, name, certificate, key)
	a.next(command, "bring both files and %s to the %s's machine over a trusted channel; the .key file is secret", filepath.Join(flags.ca, caName+".crt"), kind)
	return a.result(command, pairView{Kind: string(kind), Certificate: certificate, PrivateKey: key, Details: describe(parsed)})
}

func (a *app) pkiShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show FILE", Short: "Show what a certificate file says",
		Args: cli.Args(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			content, err := readLimited(args[0], maxCertificate)
			if err != nil {
				return err
			}
			certificate, err := parseCertificate(content, args[0])
			if err != nil {
				return err
			}
			view := describe(certificate)
			until := moment(view.NotAfter)
			if view.Expired {
				until += " (expired)"
			}
			return a.show(command, view, []field{
				{"common name", view.CommonName}, {"issuer", view.Issuer}, {"serial", view.Serial},
				{"valid from", moment(view.NotBefore)}, {"valid until", until},
				{"uses", strings.Join(view.Uses, ", ")}, {"hosts", strings.Join(view.Hosts, ", ")}, {"fingerprint", view.Fingerprint},
			})
		},
	}
}

func validityOf(days int) (time.Duration, error) {
	if days < 1 || days > 36500 {
		return 0, cli.Usage("--days %d: 1 to 36500", days)
	}
	return time.Duration(days) * day, nil
}

func loadCA(directory string) (*pki.CA, error) {
	certificate, err := readLimited(filepath.Join(directory, caName+".crt"), maxCertificate)
	if isNotExist(err) {
		return nil, &cli.Error{Exit: cli.ExitUsage, Code: "ca_missing", Message: fmt.Sprintf("no %s.crt in %s", caName, directory), Hint: "make a CA with 'chancery-server pki init', or name its directory with --ca", Cause: err}
	}
	if err != nil {
		return nil, err
	}
	key, err := readLimited(filepath.Join(directory, caName+".key"), maxCertificate)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return pki.LoadCA(certificate, key)
}

func parseCertificate(content []byte, path string) (*x509.Certificate, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, cli.Failed("certificate_invalid", "%s holds no PEM certificate", path)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, cli.Failed("certificate_invalid", "%s: %w", path, err)
	}
	return certificate, nil
}

func describe(certificate *x509.Certificate) x509Description {
	name, err := tunnel.CertificateName(certificate)
	if err != nil {
		name = "(none that can be used)"
	}
	sum := sha256.Sum256(certificate.Raw)
	view := x509Description{
		CommonName: name, Issuer: certificate.Issuer.String(), Serial: certificate.SerialNumber.Text(16),
		NotBefore: certificate.NotBefore.UTC(), NotAfter: certificate.NotAfter.UTC(), Expired: time.Now().After(certificate.NotAfter),
		Uses: uses(certificate), Hosts: append([]string{}, certificate.DNSNames...),
		Fingerprint: strings.ToUpper(hex.EncodeToString(sum[:])),
	}
	for _, address := range certificate.IPAddresses {
		view.Hosts = append(view.Hosts, address.String())
	}
	return view
}

// uses names the extended key usages (RFC 5280, section 4.2.1.12) that matter to TLS.
func uses(certificate *x509.Certificate) []string {
	names := []string{}
	if certificate.IsCA {
		names = append(names, "issue certificates")
	}
	for _, usage := range certificate.ExtKeyUsage {
		switch usage {
		case x509.ExtKeyUsageServerAuth:
			names = append(names, "TLS server")
		case x509.ExtKeyUsageClientAuth:
			names = append(names, "TLS client")
		}
	}
	return names
}

// readLimited reads a file of at most limit bytes, which may be a pipe.
func readLimited(path string, limit int64) ([]byte, error) {
	return cli.Await(func() ([]byte, error) { return readWhole(path, limit) })
}

func readWhole(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, &cli.Error{Exit: cli.ExitFailed, Code: "file_unreadable", Message: fmt.Sprintf("cannot read the file: %s", err), Cause: err}
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, &cli.Error{Exit: cli.ExitFailed, Code: "file_unreadable", Message: fmt.Sprintf("cannot read the file: %s", err), Cause: err}
	}
	if int64(len(content)) > limit {
		return nil, cli.Failed("file_too_large", "%s is larger than %d bytes; is it the right file?", path, limit)
	}
	return content, nil
}
