package raw

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"chancery/internal/testtool"
)

func TestDigestIsWhatOpenSSLSays(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	document := strings.Repeat("all work and no play\n", 10000)
	for _, name := range Hashes() {
		command := exec.Command(openssl, "dgst", "-"+name, "-r")
		command.Stdin = strings.NewReader(document)
		output, err := command.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		hash, err := ParseHash(name)
		if err != nil || HashName(hash) != name {
			t.Fatalf("%s: %v", name, err)
		}
		sum, err := Digest(iotest.HalfReader(strings.NewReader(document)), hash)
		if err != nil {
			t.Fatal(err)
		}
		if want, _, _ := strings.Cut(string(output), " "); hex.EncodeToString(sum) != want {
			t.Errorf("%s: %x, openssl says %s", name, sum, want)
		}
	}
}

func TestUnknownHashNamesTheKnown(t *testing.T) {
	for _, name := range []string{"", "sha1", "SHA256", "md5"} {
		_, err := ParseHash(name)
		if !errors.Is(err, ErrHash) || !strings.Contains(err.Error(), "sha3-512") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if HashName(crypto.SHA1) != "" {
		t.Error("SHA-1 has a name")
	}
}

func TestMessageHasALimit(t *testing.T) {
	for size, fits := range map[int]bool{0: true, 9: true, 10: true, 11: false, 1000: false} {
		message, err := Message(bytes.NewReader(make([]byte, size)), 10)
		if fits && (err != nil || len(message) != size) || !fits && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes: %d, %v", size, len(message), err)
		}
	}
}

func TestReadingErrorsAreTold(t *testing.T) {
	broken := io.MultiReader(strings.NewReader("begin"), iotest.ErrReader(io.ErrClosedPipe))
	if _, err := Digest(broken, crypto.SHA256); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	if _, err := Message(iotest.ErrReader(io.ErrClosedPipe), 10); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}
