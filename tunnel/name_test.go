package tunnel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	for _, name := range []string{"alice", "Alice Müller", "build01.example.org", "机", strings.Repeat("a", MaxName)} {
		if err := ValidName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "a\x00b", "a\nb", "a\x7f", "a\u0085", "\xff\xfe", " alice", "alice ", "a\u202eb", "a\u00a0b", "a\u2028b",
		"a\u200bb", strings.Repeat("a", MaxName+1),
	} {
		if ValidName(name) == nil {
			t.Errorf("%q passed", name)
		}
	}
}

func TestCertificateName(t *testing.T) {
	cn := func(value any) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: commonName, Value: value}
	}
	other := pkix.AttributeTypeAndValue{Type: []int{2, 5, 4, 10}, Value: "Example"}
	cases := map[string]struct {
		names []pkix.AttributeTypeAndValue
		want  string
	}{
		"one":               {[]pkix.AttributeTypeAndValue{other, cn("alice")}, "alice"},
		"the first of two":  {[]pkix.AttributeTypeAndValue{cn("alice"), cn("root")}, "alice"},
		"none":              {[]pkix.AttributeTypeAndValue{other}, ""},
		"no subject":        {nil, ""},
		"NUL":               {[]pkix.AttributeTypeAndValue{cn("root\x00.example")}, ""},
		"a bad first one":   {[]pkix.AttributeTypeAndValue{cn(""), cn("root")}, ""},
		"something else":    {[]pkix.AttributeTypeAndValue{cn(7), cn("root")}, ""},
		"longer than 64":    {[]pkix.AttributeTypeAndValue{cn(strings.Repeat("x", 65))}, ""},
		"not UTF-8":         {[]pkix.AttributeTypeAndValue{cn("\xc3\x28")}, ""},
		"a control in text": {[]pkix.AttributeTypeAndValue{cn("alice\nlevel=error")}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := CertificateName(&x509.Certificate{Subject: pkix.Name{Names: c.names}})
			if got != c.want || (c.want == "") != errors.Is(err, ErrNoName) {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// FuzzCertificateName holds that whatever a certificate says, a name that comes
// out of it is valid.
func FuzzCertificateName(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	for _, names := range [][]string{{"alice"}, {"alice", "root"}, {"root\x00.example"}} {
		template := &x509.Certificate{SerialNumber: big.NewInt(1)}
		for _, name := range names {
			template.Subject.ExtraNames = append(template.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: commonName, Value: name})
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if name, err := CertificateName(cert); err == nil && ValidName(name) != nil {
			t.Fatalf("%q came out", name)
		}
	})
}
