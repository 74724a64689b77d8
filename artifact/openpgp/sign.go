package openpgp

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Format is the form of a signature.
type Format int

const (
	// Armored is a detached signature in ASCII armour, usually named document.asc.
	Armored Format = iota
	// Binary is a detached signature as a bare packet, usually named document.sig.
	Binary
	// Cleartext wraps the text itself (RFC 9580, section 7). Line endings become
	// LF, and spaces and tabs at the end of lines are dropped, because they are
	// not signed. A missing final line ending is added.
	Cleartext
)

// Options says how to sign. The zero value is a detached armoured signature,
// made now, with the hash that suits the key.
type Options struct {
	Format Format
	// Hash is SHA-256, SHA-384 or SHA-512 and at least as long as an ECDSA
	// key's curve. Zero chooses SHA-256, or what the curve needs.
	Hash crypto.Hash
	// Time is the signature's creation time, in whole seconds. Zero means now.
	Time time.Time
	// Text receives the signed text of Format Cleartext as it is written,
	// beginning with its header. It must be nil for the other formats.
	Text io.Writer
}

// Pending is a signature whose document is being written. It belongs to one
// goroutine.
type Pending struct {
	format   Format
	unsigned *unsigned
	text     *canonicalText // nil for detached signatures
}

// New starts a signature with the certificate's primary key. It fails with
// ErrExpired or ErrRevoked when the key must no longer sign, and with
// ErrOptions when the options do not fit the key.
func New(cert *Certificate, opts Options) (*Pending, error) {
	at := opts.Time
	if at.IsZero() {
		at = time.Now()
	}
	if err := cert.maySignAt(at); err != nil {
		return nil, err
	}
	hash, err := chooseHash(cert.public, opts.Hash)
	if err != nil {
		return nil, err
	}
	if (opts.Format == Cleartext) != (opts.Text != nil) {
		return nil, fmt.Errorf("%w: text goes with the cleartext format, and only with it", ErrOptions)
	}
	p := &Pending{format: opts.Format}
	switch opts.Format {
	case Armored, Binary:
		p.unsigned, err = newUnsigned(cert.entity.PrimaryKey, packet.SigTypeBinary, hash, at, nil)
	case Cleartext:
		p.unsigned, err = newUnsigned(cert.entity.PrimaryKey, packet.SigTypeText, hash, at, nil)
	default:
		err = fmt.Errorf("%w: format %d", ErrUnsupported, opts.Format)
	}
	if err != nil {
		return nil, err
	}
	if p.format == Cleartext {
		p.text = &canonicalText{hash: p.unsigned.content, out: opts.Text, escape: true}
		err = writeCleartextHeader(opts.Text, hash)
	}
	return p, err
}

// Write adds to the document. With Format Cleartext it fails with ErrText when
// a line is too long for other programs or has NUL bytes, or with the error of Options.Text.
func (p *Pending) Write(b []byte) (int, error) {
	if p.text != nil {
		return p.text.Write(b)
	}
	return p.unsigned.content.Write(b)
}

// Digest returns what the key has to sign, once the whole document is written:
// a digest of the returned hash for RSA (PKCS#1 v1.5) and ECDSA. For Ed25519
// the hash is zero and the bytes are the message to sign, which is what
// crypto.Signer expects of such a key.
func (p *Pending) Digest() (crypto.Hash, []byte) {
	return p.unsigned.signerHash(), p.unsigned.digest()
}

// Finish takes the raw signature of what Digest returned and gives the bytes to
// write: the signature file for Armored and Binary; for Cleartext what follows
// the text in Options.Text. A raw signature is as long as the modulus for RSA,
// the DER SEQUENCE of r and s for ECDSA, and 64 bytes for Ed25519. It is
// verified against the certificate first: ErrSignature says that it was made
// by another key or over something else.
func (p *Pending) Finish(rawSignature []byte) ([]byte, error) {
	signature, err := p.unsigned.complete(rawSignature)
	if err != nil {
		return nil, err
	}
	switch p.format {
	case Binary:
		return signature, nil
	case Cleartext:
		// The line ending before the armour belongs to it, not to the text.
		return append([]byte("\n"), armorBlock(signatureBlock, signature)...), nil
	default:
		return armorBlock(signatureBlock, signature), nil
	}
}

// Sign signs the document in r and writes the result to w: the signature alone,
// or with Format Cleartext the text and its signature (Options.Text is w then).
// What reached w before an error is of no use. The signer's key must be the
// certificate's primary key, otherwise the error is ErrOtherKey.
func Sign(w io.Writer, r io.Reader, cert *Certificate, signer crypto.Signer, opts Options) error {
	if !samePublic(signer.Public(), cert.public) {
		return fmt.Errorf("certificate %s does not belong to this key: %w", cert.Fingerprint(), ErrOtherKey)
	}
	if opts.Format == Cleartext {
		opts.Text = w
	}
	pending, err := New(cert, opts)
	if err != nil {
		return err
	}
	if _, err := io.Copy(pending, r); err != nil {
		return fmt.Errorf("openpgp: reading the document: %w", err)
	}
	hash, digest := pending.Digest()
	raw, err := signer.Sign(rand.Reader, digest, hash)
	if err != nil {
		return fmt.Errorf("openpgp: signing: %w", err)
	}
	signature, err := pending.Finish(raw)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, bytes.NewReader(signature))
	return err
}
