package main

import (
	"strconv"
	"strings"
	"unicode"

	"chancery/tunnel/wire"
)

// printable returns foreign text as it is if a terminal shows it as it is, and else quoted.
func printable(text string) string {
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(text)
	}
	return text
}

// spoken are the names that people use, chancery-server's operators too, for what the wire calls otherwise.
var spoken = map[string]string{
	string(wire.RSA2K): "rsa2048", string(wire.RSA3K): "rsa3072", string(wire.RSA4K): "rsa4096",
	string(wire.P256): "p256", string(wire.P384): "p384", string(wire.P521): "p521", string(wire.Ed25519): "ed25519",
	string(wire.CertificatePGP): "openpgp", string(wire.CertificateX509): "x509",
}

// called is an algorithm or a certificate's type as people call it; one that this program does not know stays as it is.
func called(name string) string {
	if known, ok := spoken[name]; ok {
		return known
	}
	return printable(name)
}

func quoted(text string) string { return strconv.Quote(text) }

// count says how many of how many files.
func count(some, all int) string { return strconv.Itoa(some) + " of " + strconv.Itoa(all) + " files" }
