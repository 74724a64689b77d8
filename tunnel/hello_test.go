package tunnel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const goldenSession = "019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70"

func golden(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "golden", name+".bin"))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestGoldenHello(t *testing.T) {
	for role, name := range map[Role]string{RoleClient: "hello-client", RoleServer: "hello-server"} {
		for order, suffix := range map[Order]string{EnumFirst: "", Documented: "-documented"} {
			t.Run(name+suffix, func(t *testing.T) {
				want := NewHello(role)
				want.Order = order
				file := golden(t, name+suffix)
				if encoded := want.Encode(); !bytes.Equal(encoded[:], file) {
					t.Errorf("encoded % x, want % x", encoded, file)
				}
				got, err := DecodeHello([HelloSize]byte(file))
				if err != nil || got != want {
					t.Errorf("decoded %+v, %v; want %+v", got, err, want)
				}
			})
		}
	}
}

func TestGoldenAck(t *testing.T) {
	names := map[Status]string{
		StatusOK: "ack-ok", StatusVersion: "ack-version", StatusRole: "ack-role",
		StatusNoName: "ack-no-name", StatusMagic: "ack-magic", StatusNotAllowed: "ack-not-allowed",
	}
	for status, name := range names {
		for order, suffix := range map[Order]string{EnumFirst: "", Documented: "-documented"} {
			t.Run(name+suffix, func(t *testing.T) {
				file := golden(t, name+suffix)
				ack := DecodeAck([AckSize]byte(file))
				if ack.Status != status || ack.Order != order || ack.Session.String() != goldenSession {
					t.Errorf("decoded %+v", ack)
				}
				if encoded := ack.Encode(); !bytes.Equal(encoded[:], file) {
					t.Errorf("encoded % x, want % x", encoded, file)
				}
			})
		}
	}
}

// TestCheckOrder holds the order in which a bridge judges: a hello that is
// wrong in several ways is answered for the first.
func TestCheckOrder(t *testing.T) {
	wrong := NewHello(RoleServer)
	wrong.Version = 3
	wrong.Magic[7] = 'X'
	for _, want := range []Status{StatusMagic, StatusVersion, StatusRole, StatusOK} {
		if got := wrong.Check(RoleClient); got != want {
			t.Fatalf("%+v: got %q, want %q", wrong, got, want)
		}
		switch want {
		case StatusMagic:
			wrong.Magic[7] = 'Y'
		case StatusVersion:
			wrong.Version = Version
		case StatusRole:
			wrong.Role = RoleClient
		}
	}
}

func TestUnknownRoleIsNoHello(t *testing.T) {
	for _, file := range []string{"hello-client", "hello-client-documented"} {
		b := [HelloSize]byte(golden(t, file))
		role := &b[0]
		if file == "hello-client-documented" {
			role = &b[HelloSize-1]
		}
		for _, value := range []byte{2, 0x52, 0x54, 0xff} {
			*role = value
			if _, err := DecodeHello(b); !errors.Is(err, ErrHello) {
				t.Errorf("%s with role %#x: %v", file, value, err)
			}
		}
	}
}

func TestSessionID(t *testing.T) {
	seen := make(map[SessionID]bool)
	for range 1000 {
		id := NewSessionID()
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
		if id[6]>>4 != 7 || id[8]>>6 != 2 {
			t.Fatalf("%s is no UUIDv7", id)
		}
		var ms int64
		for _, b := range id[:6] {
			ms = ms<<8 | int64(b)
		}
		if age := time.Since(time.UnixMilli(ms)); age < -time.Second || age > time.Minute {
			t.Fatalf("%s was minted %s ago", id, age)
		}
	}
}

func FuzzDecodeHello(f *testing.F) {
	for _, name := range []string{"hello-client", "hello-server", "hello-client-documented", "hello-server-documented"} {
		f.Add(golden(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != HelloSize {
			return
		}
		h, err := DecodeHello([HelloSize]byte(b))
		if err != nil {
			return
		}
		if encoded := h.Encode(); !bytes.Equal(encoded[:], b) {
			t.Fatalf("% x came back as % x", b, encoded)
		}
		if h.Check(h.Role) == StatusOK && h != (Hello{h.Role, NewHello(h.Role).Magic, Version, h.Order}) {
			t.Fatalf("%+v passed", h)
		}
	})
}

func FuzzDecodeAck(f *testing.F) {
	for _, name := range []string{"ack-ok", "ack-version", "ack-role", "ack-magic", "ack-ok-documented", "ack-version-documented"} {
		f.Add(golden(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != AckSize {
			return
		}
		ack := DecodeAck([AckSize]byte(b))
		if encoded := ack.Encode(); !bytes.Equal(encoded[:], b) {
			t.Fatalf("% x came back as % x", b, encoded)
		}
	})
}
