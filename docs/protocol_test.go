// Package docs_test keeps the documents honest: what they show of the wire is
// decoded, encoded again and compared with the golden messages.
package docs_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"chancery/tunnel"
	"chancery/tunnel/wire"
)

const goldenDir = "../tunnel/wire/testdata/golden"

// example is one line of a fenced block of a document.
type example struct {
	language string // of the block
	section  string // heading of the second level above it
	text     string
}

func (e example) extended() bool { return strings.Contains(e.section, "chancery/1") }

// examples returns the lines of all fenced blocks that name a language.
func examples(t *testing.T, document string) []example {
	t.Helper()
	var found []example
	section, language, inside := "", "", false
	for line := range strings.Lines(document) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = !inside
			language = strings.TrimPrefix(line, "```")
		case !inside && strings.HasPrefix(line, "## "):
			section = line
		case inside && language != "" && line != "":
			found = append(found, example{language, section, line})
		}
	}
	if inside {
		t.Fatal("a fenced block has no end")
	}
	return found
}

func protocol(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// goldenMessages returns the JSON of each golden file by its name.
func goldenMessages(t *testing.T) map[string]string {
	t.Helper()
	messages := make(map[string]string)
	files, err := filepath.Glob(filepath.Join(goldenDir, "*", "*.re*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden messages: %v", err)
	}
	for _, file := range files {
		frame, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if name, _ := filepath.Rel(goldenDir, file); len(frame) > 8 {
			messages[filepath.ToSlash(name)] = string(frame[8:])
		}
	}
	return messages
}

func TestEveryGoldenMessageIsShown(t *testing.T) {
	shown := make(map[string]bool)
	for _, e := range examples(t, protocol(t)) {
		shown[e.text] = true
	}
	for name, message := range goldenMessages(t) {
		if !shown[message] {
			t.Errorf("protocol.md does not show %s", name)
		}
	}
}

func TestMessagesDecode(t *testing.T) {
	foreign := make(map[string]bool) // written by other servers only
	for name, message := range goldenMessages(t) {
		foreign[message] = strings.HasPrefix(name, "foreign/")
	}
	count := 0
	for _, e := range examples(t, protocol(t)) {
		if e.language != "json" {
			continue
		}
		count++
		again, err := again(e)
		if err != nil {
			t.Errorf("%s: %v", e.text, err)
		} else if again != e.text && !foreign[e.text] {
			t.Errorf("in %q\n%s\nis encoded as\n%s", e.section, e.text, again)
		}
	}
	if count < 25 {
		t.Errorf("only %d messages found", count)
	}
}

// again decodes a message and encodes it anew, in the dialect of its section.
func again(e example) (string, error) {
	if strings.Contains(e.text, `,"request":`) {
		request, err := wire.DecodeRequest([]byte(e.text), e.extended())
		if err != nil {
			return "", err
		}
		return string(wire.AppendRequest(nil, request)), nil
	}
	response, err := wire.DecodeResponse([]byte(e.text))
	if err != nil {
		return "", err
	}
	return string(wire.AppendResponse(nil, response, e.extended())), nil
}

func TestBytesDecode(t *testing.T) {
	count := 0
	for _, e := range examples(t, protocol(t)) {
		if e.language != "hex" {
			continue
		}
		count++
		label, digits, _ := strings.Cut(e.text, "   ")
		b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", e.text, err)
		}
		if got := describe(b); got != label {
			t.Errorf("%s: these bytes are %q", e.text, got)
		}
	}
	if count < 8 {
		t.Errorf("only %d lines of bytes found", count)
	}
}

// describe names bytes as protocol.md labels them, from what decoding them gives.
func describe(b []byte) string {
	order := map[tunnel.Order]string{tunnel.Documented: " documented"}
	switch len(b) {
	case tunnel.HelloSize:
		hello, err := tunnel.DecodeHello([tunnel.HelloSize]byte(b))
		if err != nil {
			return err.Error()
		}
		if encoded := hello.Encode(); !bytes.Equal(encoded[:], b) || hello.Check(hello.Role) != tunnel.StatusOK {
			return fmt.Sprintf("no good hello: %+v", hello)
		}
		return "hello " + hello.Role.String() + order[hello.Order]
	case tunnel.AckSize:
		ack := tunnel.DecodeAck([tunnel.AckSize]byte(b))
		if ack.Session.String() != "019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70" {
			return "ack of session " + ack.Session.String()
		}
		return "ack " + strconv.Itoa(int(ack.Status)) + order[ack.Order]
	case 8:
		return "frame " + strconv.FormatUint(binary.BigEndian.Uint64(b), 10)
	}
	return fmt.Sprintf("%d bytes of nothing known", len(b))
}

func TestFrameExample(t *testing.T) {
	message := goldenMessages(t)["version2/who_am_i.request"]
	if want := fmt.Sprintf("has %d bytes", len(message)); !strings.Contains(protocol(t), want) {
		t.Errorf("protocol.md does not say that the who_am_i request %s", want)
	}
}

// TestNamesAndNumbers: what the code defines stands in the document.
func TestNamesAndNumbers(t *testing.T) {
	document := protocol(t)
	wanted := []string{
		strconv.Itoa(wire.MaxRequest), strconv.Itoa(wire.MaxRequestExtended), strconv.Itoa(wire.MaxResponse),
		"`" + tunnel.Protocol + "`", `"scheme":"` + string(wire.SchemePSS) + `"`,
		strconv.FormatInt(wire.MaxDeadline.Milliseconds(), 10), "`idempotency_key`", "`deadline_ms`",
		"`" + string(wire.CodeIdempotencyConflict) + "`", "`" + string(wire.CodeDeadlineExceeded) + "`",
	}
	for status := tunnel.StatusOK; !strings.HasPrefix(status.String(), "unknown"); status++ {
		wanted = append(wanted, fmt.Sprintf("\n| %d | ", status))
	}
	for _, a := range []wire.KeyAlgorithm{wire.RSA2K, wire.RSA3K, wire.RSA4K, wire.P256, wire.P384, wire.P521, wire.Ed25519} {
		wanted = append(wanted, "`"+string(a)+"`", "`"+string(a.Tag())+"`")
	}
	for _, a := range []wire.DigestAlgorithm{wire.SHA256, wire.SHA384, wire.SHA512, wire.SHA3_256, wire.SHA3_512} {
		wanted = append(wanted, "`"+string(a)+"`")
	}
	for _, retry := range []wire.Retry{wire.RetryNo, wire.RetryLater, wire.RetryUnlock, wire.RetryReconnect} {
		wanted = append(wanted, "`"+string(retry)+"`: ")
	}
	for _, want := range wanted {
		if !strings.Contains(document, want) {
			t.Errorf("protocol.md lacks %q", want)
		}
	}
}
