package access

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func cheap() Parameters {
	p := NewParameters()
	p.Time, p.MemoryKiB, p.Threads = MinTime, MinMemoryKiB, 1
	return p
}

func derive(t testing.TB, passphrase string, p Parameters) *Key {
	t.Helper()
	key, err := DeriveKey([]byte(passphrase), p)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func binding() Binding {
	return Binding{TokenSerial: "s1", KeyHandle: "AB12", User: "alice", Role: "signer", Expires: time.Unix(1900000000, 0)}
}

func TestPassphraseBringsThePINBack(t *testing.T) {
	p := cheap()
	public := derive(t, "correct horse", p).Public()
	stored, err := ParsePublicKey(public.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := Wrap([]byte("123456"), stored, binding())
	if err != nil {
		t.Fatal(err)
	}
	pin, err := derive(t, "correct horse", p).Unwrap(wrapped, binding())
	if err != nil || string(pin) != "123456" {
		t.Fatalf("pin %q, error %v", pin, err)
	}
	if _, err := derive(t, "correct horsf", p).Unwrap(wrapped, binding()); !errors.Is(err, ErrWrongPassphrase) {
		t.Fatalf("wrong passphrase: %v", err)
	}
}

func TestWrappedPINOpensUnderItsBindingOnly(t *testing.T) {
	key := derive(t, "correct horse", cheap())
	wrapped, err := Wrap([]byte("123456"), key.Public(), binding())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Binding){
		"token":   func(b *Binding) { b.TokenSerial = "s2" },
		"key":     func(b *Binding) { b.KeyHandle = "AB13" },
		"user":    func(b *Binding) { b.User = "bob" },
		"role":    func(b *Binding) { b.Role = "manager" },
		"expiry":  func(b *Binding) { b.Expires = b.Expires.Add(time.Second) },
		"forever": func(b *Binding) { b.Expires = time.Time{} },
		"shifted": func(b *Binding) { b.TokenSerial, b.KeyHandle = "s1A", "B12" },
	} {
		other := binding()
		change(&other)
		if _, err := key.Unwrap(wrapped, other); !errors.Is(err, ErrWrongPassphrase) {
			t.Errorf("%s: opened under another binding: %v", name, err)
		}
	}
	wrapped[len(wrapped)-1] ^= 1
	if _, err := key.Unwrap(wrapped, binding()); !errors.Is(err, ErrWrongPassphrase) {
		t.Errorf("altered bytes: %v", err)
	}
}

func TestWrappedSizeHidesThePINLength(t *testing.T) {
	public := derive(t, "correct horse", cheap()).Public()
	short, err := Wrap([]byte("1"), public, binding())
	if err != nil {
		t.Fatal(err)
	}
	long, err := Wrap(bytes.Repeat([]byte("9"), MaxPINSize), public, binding())
	if err != nil {
		t.Fatal(err)
	}
	if len(short) != len(long) {
		t.Errorf("sizes %d and %d differ", len(short), len(long))
	}
	for _, size := range []int{0, MaxPINSize + 1} {
		if _, err := Wrap(make([]byte, size), public, binding()); err == nil {
			t.Errorf("a PIN of %d bytes was wrapped", size)
		}
	}
}

func TestParametersHaveBounds(t *testing.T) {
	for name, change := range map[string]func(*Parameters){
		"no passes":      func(p *Parameters) { p.Time = 0 },
		"one pass":       func(p *Parameters) { p.Time = 1 },
		"endless passes": func(p *Parameters) { p.Time = 1 << 20 },
		"little memory":  func(p *Parameters) { p.MemoryKiB = 8 },
		"all memory":     func(p *Parameters) { p.MemoryKiB = 1 << 31 },
		"no lanes":       func(p *Parameters) { p.Threads = 0 },
		"many lanes":     func(p *Parameters) { p.Threads = 255 },
	} {
		p := cheap()
		change(&p)
		if _, err := DeriveKey([]byte("x"), p); !errors.Is(err, ErrParameters) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnrolmentRoundTrip(t *testing.T) {
	key := derive(t, "correct horse", cheap())
	text := Enrolment{User: "alice", Key: key.Public()}.String()
	folded := " " + text[:100] + "\r\n  " + text[100:] + "\n"
	got, err := ParseEnrolment(folded)
	if err != nil {
		t.Fatal(err)
	}
	if got.User != "alice" || !bytes.Equal(got.Key.Bytes(), key.Public().Bytes()) {
		t.Errorf("got user %q and another key", got.User)
	}
	if got.Key.Fingerprint() != key.Public().Fingerprint() {
		t.Error("fingerprints differ")
	}
}

func TestDamagedEnrolmentIsRefused(t *testing.T) {
	text := Enrolment{User: "alice", Key: derive(t, "correct horse", cheap()).Public()}.String()
	for name, damaged := range map[string]string{
		"empty":       "",
		"prefix only": enrolmentPrefix,
		"version":     strings.Replace(text, "-1.", "-2.", 1),
		"cut":         text[:len(text)-8],
		"flipped":     text[:200] + "A" + text[201:],
		"swapped":     text[:60] + text[62:64] + text[60:62] + text[64:],
		"huge":        text + strings.Repeat("A", 8192),
	} {
		if damaged == text {
			continue // the replaced character happened to be the same one
		}
		if _, err := ParseEnrolment(damaged); !errors.Is(err, ErrEnrolment) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPassphraseRules(t *testing.T) {
	for passphrase, ok := range map[string]bool{
		"":                         false,
		"short":                    false,
		"twelve chars":             true,
		"zwölf Zeichn":             true,
		"bad utf8 \xff\xfe\xfd...": false,
		strings.Repeat("x", 1025):  false,
	} {
		if err := CheckPassphrase([]byte(passphrase), DefaultMinPassphrase); (err == nil) != ok {
			t.Errorf("%.20q: %v", passphrase, err)
		}
	}
	first, second := GeneratePassphrase(), GeneratePassphrase()
	if bytes.Equal(first, second) || len(first) != 29 || CheckPassphrase(first, DefaultMinPassphrase) != nil {
		t.Errorf("generated %q and %q", first, second)
	}
}

func FuzzParseEnrolment(f *testing.F) {
	f.Add(Enrolment{User: "alice", Key: derive(f, "correct horse", cheap()).Public()}.String())
	f.Add(enrolmentPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEnrolment(s)
		if err != nil {
			return
		}
		again, err := ParseEnrolment(e.String())
		if err != nil || again.User != e.User {
			t.Fatalf("round trip of %q: %v", s, err)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(derive(f, "correct horse", cheap()).Public().Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := ParsePublicKey(b)
		if err == nil && !bytes.Equal(key.Bytes(), b) {
			t.Fatal("parsed key encodes to other bytes")
		}
	})
}

func TestAnEnrolmentDoesNotChooseWhatAnUnlockCosts(t *testing.T) {
	key, err := DeriveKey([]byte("correct-horse"), Parameters{Time: MinTime, MemoryKiB: MinMemoryKiB, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, raise := range map[string]func(*Parameters){
		"memory": func(p *Parameters) { p.MemoryKiB = 512 << 10 },
		"passes": func(p *Parameters) { p.Time = 16 },
	} {
		public := key.Public()
		raise(&public.Parameters)
		if _, err := ParseEnrolment(Enrolment{User: "mallory", Key: public}.String()); !errors.Is(err, ErrParameters) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
