package swtpm

import (
	"os"
	"testing"

	"chancery/internal/testtool"
)

// modules are where distributions keep tpm2-pkcs11.
var modules = []string{
	"/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1", // Debian, Ubuntu
	"/usr/lib/aarch64-linux-gnu/libtpm2_pkcs11.so.1",
	"/usr/lib64/pkcs11/libtpm2_pkcs11.so", // Fedora
}

// PKCS11Module returns the path of tpm2-pkcs11's module. Without it the test ends as testtool.Missing says.
func PKCS11Module(tb testing.TB) string {
	tb.Helper()
	for _, path := range modules {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	testtool.Missing(tb, "tpm2-pkcs11")
	return ""
}
