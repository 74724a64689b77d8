package x509cert

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func TestParseSubject(t *testing.T) {
	for in, want := range map[string]string{
		"CN=Release":                           "CN=Release",
		"cn=Release , o = Example":             "CN=Release,O=Example",
		`CN=Release,O=Example\, Inc.`:          `CN=Release,O=Example\, Inc.`,
		`CN=Release\2C O=Fake`:                 `CN=Release\, O=Fake`,
		`CN=\ padded\ `:                        `CN=\ padded\ `,
		`CN=\#1\=\"\+\;\<\>\\`:                 `CN=\#1=\"\+\;\<\>\\`,
		"CN=Grüße,L=München":                   "CN=Grüße,L=München",
		`CN=Gr\C3\BC\C3\9Fe`:                   "CN=Grüße",
		"CN=a=b":                               "CN=a=b",
		"CN=R,OU=a,OU=b,O=E,L=X,ST=Y,C=DE":     "CN=R,OU=a,OU=b,O=E,L=X,ST=Y,C=DE",
		"CN=R,DC=example,DC=com":               "CN=R,0.9.2342.19200300.100.1.25=#13076578616d706c65,0.9.2342.19200300.100.1.25=#1303636f6d",
		"CN=R,SERIALNUMBER=12,STREET=A road 1": "CN=R,SERIALNUMBER=12,STREET=A road 1",
		"CN=R,UID=r":                           "CN=R,0.9.2342.19200300.100.1.1=#130172",
		"CN=R,emailAddress=r@example.com":      "CN=R,1.2.840.113549.1.9.1=#0c0d72406578616d706c652e636f6d",
		"CN=" + strings.Repeat("ü", 64):        "CN=" + strings.Repeat("ü", 64),
	} {
		parsed, err := ParseSubject(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		der, err := asn1.Marshal(parsed)
		if err != nil {
			t.Fatal(err)
		}
		var name pkix.RDNSequence
		if _, err := asn1.Unmarshal(der, &name); err != nil {
			t.Fatal(err)
		}
		if got := name.String(); got != want {
			t.Errorf("%s: read as %s, want %s", in, got, want)
		}
	}
}

func TestSubjectBytes(t *testing.T) {
	name, err := ParseSubject("CN=Ö,emailAddress=a@b,O=E,C=DE")
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	want := "303a" + "310b3009060355040613024445" + // C, PrintableString
		"310a3008060355040a130145" + // O, PrintableString
		"3112301006092a864886f70d0109011603614062" + // emailAddress, IA5String
		"310b300906035504030c02c396" // CN, UTF8String
	if got := hex.EncodeToString(der); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestParseSubjectRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":            "",
		"no equals":          "Release",
		"no CN":              "O=Example",
		"empty CN":           "CN=",
		"blank CN":           "CN=  ",
		"trailing comma":     "CN=Release,",
		"leading comma":      ",CN=Release",
		"two CNs":            "CN=Release,CN=admin",
		"several values":     "CN=Release+O=Example",
		"semicolon":          "CN=Release;O=Example",
		"quotes":             `CN="Release"`,
		"hex value":          "CN=#0c0141",
		"unknown part":       "CN=Release,XX=1",
		"object identifier":  "CN=Release,2.5.4.3=admin",
		"lone backslash":     `CN=Release\`,
		"odd escape":         `CN=Release\x`,
		"half a hex escape":  `CN=Release\2`,
		"escaped NUL":        `CN=admin\00.example.com`,
		"newline":            "CN=Release\nO=Example",
		"turned direction":   "CN=\u202eesaeleR",
		"not UTF-8":          "CN=\xff",
		"escaped not UTF-8":  `CN=\FF`,
		"long CN":            "CN=" + strings.Repeat("x", 65),
		"long":               "CN=x,O=" + strings.Repeat("x", maxSubjectLength),
		"country in words":   "CN=Release,C=Germany",
		"country in small":   "CN=Release,C=de",
		"accent in a serial": "CN=Release,SERIALNUMBER=ä",
		"accent in a domain": "CN=Release,DC=ä",
	} {
		if parsed, err := ParseSubject(in); !errors.Is(err, ErrSubject) {
			t.Errorf("%s: read as %v, %v", name, parsed, err)
		}
	}
}

// FuzzParseSubject: whatever is taken can be encoded, read back, and has one CN.
func FuzzParseSubject(f *testing.F) {
	f.Add("CN=Release,O=Example")
	f.Add(`CN=\ a\2C\#b\ ,C=DE,DC=example`)
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := ParseSubject(s)
		if err != nil {
			return
		}
		der, err := asn1.Marshal(parsed)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		var read pkix.RDNSequence
		if rest, err := asn1.Unmarshal(der, &read); err != nil || len(rest) > 0 {
			t.Fatalf("%q: %x: %v", s, der, err)
		}
		var name pkix.Name
		name.FillFromRDNSequence(&read)
		if name.CommonName == "" || len(read) != len(parsed) {
			t.Errorf("%q: read back as %v", s, read)
		}
	})
}
