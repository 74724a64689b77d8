package openpgp

import (
	"bufio"
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// maxLineLength is in bytes, without the line ending. GnuPG cuts longer lines
// of a cleartext message at 20,000 bytes and then finds the signature wrong.
const maxLineLength = 19000

const (
	cleartextBegin = "-----BEGIN PGP SIGNED MESSAGE-----"
	signatureBegin = "-----BEGIN PGP SIGNATURE-----"
)

// hashNames are the values of the Hash header (RFC 9580, section 9.5).
var hashNames = map[string]crypto.Hash{
	"SHA256": crypto.SHA256, "SHA384": crypto.SHA384, "SHA512": crypto.SHA512,
	"SHA3-256": crypto.SHA3_256, "SHA3-512": crypto.SHA3_512,
}

func writeCleartextHeader(w io.Writer, hash crypto.Hash) error {
	for name, h := range hashNames {
		if h == hash {
			_, err := fmt.Fprintf(w, "%s\nHash: %s\n\n", cleartextBegin, name)
			return err
		}
	}
	return fmt.Errorf("%w: hash %v in cleartext", ErrUnsupported, hash)
}

// canonicalText brings text into the form that a cleartext signature is over
// (RFC 9580, section 7.2), and copies it with LF line endings: white space
// at line ends is dropped, and so is the last line ending, which belongs to the
// armour. Both outputs see the same text, so what was signed is what was copied.
type canonicalText struct {
	hash   io.Writer // receives CRLF line endings; cannot fail
	out    io.Writer
	escape bool // dash-escape the copy: this is being signed

	copied  bytes.Buffer // of the current Write, for out
	spaces  []byte       // white space that counts only if something follows on its line
	length  int          // of the current line so far
	pending bool         // a line ending that counts only if something follows
}

func (t *canonicalText) Write(b []byte) (int, error) {
	if t.escape && bytes.IndexByte(b, 0) >= 0 {
		return 0, fmt.Errorf("%w: it has NUL bytes, as text in UTF-16 does, and GnuPG takes some of them for spaces", ErrText)
	}
	t.copied.Reset()
	for rest := b; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		rest = after
		if t.length+len(line) > maxLineLength {
			return 0, fmt.Errorf("%w: it has a line of more than %d bytes", ErrText, maxLineLength)
		}
		t.text(line)
		if ended {
			t.lineEnd()
		}
	}
	if _, err := t.out.Write(t.copied.Bytes()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// text adds a piece of a line.
func (t *canonicalText) text(piece []byte) {
	visible := bytes.TrimRight(piece, " \t\r")
	if len(visible) > 0 {
		t.flushLineEnd()
		if t.escape && t.length == 0 && visible[0] == '-' {
			t.copied.WriteString("- ")
		}
		t.both(t.spaces)
		t.both(visible)
		t.spaces = t.spaces[:0]
	}
	t.spaces = append(t.spaces, piece[len(visible):]...)
	t.length += len(piece)
}

func (t *canonicalText) lineEnd() {
	t.flushLineEnd()
	t.pending = true
	t.spaces = t.spaces[:0]
	t.length = 0
}

func (t *canonicalText) flushLineEnd() {
	if t.pending {
		_, _ = t.hash.Write([]byte("\r\n"))
		t.copied.WriteByte('\n')
		t.pending = false
	}
}

func (t *canonicalText) both(b []byte) {
	_, _ = t.hash.Write(b)
	t.copied.Write(b)
}

// VerifyCleartext checks a message with a cleartext signature (RFC 9580,
// section 7), as Verify does a detached one, and writes the signed text to
// text: lines end in LF, without the white space at their ends, which is not
// signed. The text is written while it is read, so it must not be used before
// VerifyCleartext has returned without an error. A nil text drops it.
//
// Nothing may stand before or after the message: a reader would take it for
// signed. Lines of more than 19,000 bytes are refused.
func VerifyCleartext(cert *Certificate, message io.Reader, text io.Writer) (*Verification, error) {
	if text == nil {
		text = io.Discard
	}
	lines := bufio.NewReaderSize(message, maxLineLength+64)
	hashes, err := readCleartextHeader(lines)
	if err != nil {
		return nil, err
	}
	states := make(map[crypto.Hash]hash.Hash, len(hashes))
	var writers []io.Writer
	for _, h := range hashes {
		states[h] = h.New()
		writers = append(writers, states[h])
	}
	if err := copyCleartext(lines, &canonicalText{hash: io.MultiWriter(writers...), out: text}); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(text, "\n"); err != nil {
		return nil, err
	}
	own, err := readCleartextSignature(cert, lines, hashes)
	if err != nil {
		return nil, err
	}
	return cert.conclude(own, func(i int) hash.Hash {
		// Two signatures may share a hash, and verifying adds to it.
		state, _ := states[own[i].signature.Hash].(hash.Cloner).Clone()
		return state
	})
}

// readCleartextHeader reads up to the empty line and returns the hashes that
// signatures may use.
func readCleartextHeader(lines *bufio.Reader) ([]crypto.Hash, error) {
	if line, err := readLine(lines); err != nil || string(line) != cleartextBegin+"\n" {
		return nil, unlessReading(err, "it does not begin with "+cleartextBegin)
	}
	var hashes []crypto.Hash
	for range maxSignaturePackets {
		line, err := readLine(lines)
		if err != nil {
			return nil, unlessReading(err, "its header has no end")
		}
		if string(line) == "\n" {
			if len(hashes) == 0 {
				return slices.Clone(acceptedHashes), nil
			}
			return hashes, nil
		}
		names, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "Hash: ")
		if !ok {
			return nil, fmt.Errorf("%w: its header has a line that is not signed and does not belong there", ErrMalformed)
		}
		for name := range strings.SplitSeq(names, ",") {
			h, ok := hashNames[strings.TrimSpace(name)]
			if !ok {
				return nil, fmt.Errorf("%w: hash %s is unknown or can be forged", ErrMalformed, printable(name))
			}
			if !slices.Contains(hashes, h) {
				hashes = append(hashes, h)
			}
		}
	}
	return nil, fmt.Errorf("%w: its header is too long", ErrMalformed)
}

// copyCleartext reads the text up to the signature's armour.
func copyCleartext(lines *bufio.Reader, text *canonicalText) error {
	for {
		line, err := readLine(lines)
		if err != nil {
			return unlessReading(err, "the signature is missing")
		}
		if string(line) == signatureBegin+"\n" {
			return nil
		}
		if unescaped, ok := bytes.CutPrefix(line, []byte("- ")); ok {
			line = unescaped
		} else if line[0] == '-' {
			return fmt.Errorf("%w: a line begins with a dash that is not escaped", ErrMalformed)
		}
		if _, err := text.Write(line); err != nil {
			return err
		}
	}
}

// readCleartextSignature reads the armour, whose first line is already read, to
// the end of the message.
func readCleartextSignature(cert *Certificate, lines *bufio.Reader, hashes []crypto.Hash) ([]candidate, error) {
	block := []byte(signatureBegin + "\n")
	rest, err := io.ReadAll(io.LimitReader(lines, maxSignatureSize))
	if err != nil {
		return nil, fmt.Errorf("openpgp: reading the message: %w", err)
	}
	block = append(block, rest...)
	_, after, _ := bytes.Cut(block, []byte("-----END PGP SIGNATURE-----"))
	if len(bytes.TrimSpace(after)) > 0 {
		return nil, fmt.Errorf("%w: something follows the signature", ErrMalformed)
	}
	signatures, err := parseSignatures(block)
	if err != nil {
		return nil, err
	}
	own := cert.own(signatures)
	if len(own) == 0 {
		return nil, fmt.Errorf("no signature by certificate %s: %w", cert.Fingerprint(), ErrOtherKey)
	}
	for _, candidate := range own {
		if err := candidate.acceptable(packet.SigTypeText); err != nil {
			return nil, err
		}
		if !slices.Contains(hashes, candidate.signature.Hash) {
			return nil, fmt.Errorf("%w: the message's Hash header does not name its hash", ErrSignature)
		}
	}
	return own, nil
}

// readLine returns the next line, ending in LF, valid until the next call.
// White space before the line ending is left out when it does not count.
func readLine(lines *bufio.Reader) ([]byte, error) {
	line, err := lines.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrMalformed, maxLineLength)
	}
	if err != nil {
		return nil, err
	}
	end := len(bytes.TrimRight(line, " \t\r\n"))
	line[end] = '\n'
	return line[:end+1], nil
}

// unlessReading returns ErrMalformed with this cause, or the error of reading
// when that is what went wrong.
func unlessReading(err error, cause string) error {
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %s", ErrMalformed, cause)
	case errors.Is(err, ErrMalformed):
		return err
	default:
		return fmt.Errorf("openpgp: reading the message: %w", err)
	}
}
