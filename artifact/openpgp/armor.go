package openpgp

import (
	"bytes"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
)

// Types of armoured blocks (RFC 9580, section 6.2.1).
const (
	signatureBlock = "PGP SIGNATURE"
	publicKeyBlock = "PGP PUBLIC KEY BLOCK"
)

var armorBegin = []byte("-----BEGIN ")

// armorBlock encodes binary packets in ASCII armour, without headers and with
// the checksum that RPM before 4.20 insists on.
func armorBlock(kind string, packets []byte) []byte {
	var b bytes.Buffer
	// Writing to a buffer cannot fail.
	w, _ := armor.EncodeWithChecksumOption(&b, kind, nil, true)
	_, _ = w.Write(packets)
	_ = w.Close()
	b.WriteByte('\n')
	return b.Bytes()
}

// packetsOf returns the binary packets of data, which are armoured or bare. An
// armoured block must be the only one: with two, which one counts is a guess.
// Text around it is ignored, as people keep notes there.
func packetsOf(kind string, data []byte) ([]byte, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("nothing where a %s should be", kind)
	}
	if data[0]&0x80 != 0 { // every packet header has this bit, no text has
		return data, nil
	}
	if n := bytes.Count(data, armorBegin); n != 1 {
		return nil, fmt.Errorf("%d armoured blocks where one %s should be", n, kind)
	}
	block, err := armor.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("no armoured %s", kind)
	}
	if block.Type != kind {
		return nil, fmt.Errorf("a %s where a %s should be", printable(block.Type), kind)
	}
	if !bytes.Contains(data, []byte("-----END "+kind+"-----")) {
		return nil, fmt.Errorf("the %s is cut off", kind)
	}
	packets, err := io.ReadAll(block.Body)
	if err != nil {
		return nil, fmt.Errorf("the armour of the %s is damaged", kind)
	}
	return packets, nil
}

// printable quotes foreign text for an error, at most 40 bytes of it.
func printable(s string) string {
	return fmt.Sprintf("%.42q", s[:min(len(s), 40)])
}
