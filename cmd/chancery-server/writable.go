package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"chancery/users"
)

// writable lists what a token's process may write to: what the configuration allows to all, and what this kind of token, and
// of each of its replicas, is known to need.
func (c tokensConfig) writable(t users.Token) []string {
	paths := slices.Clone(c.Writable)
	for _, home := range t.Homes() {
		paths = append(paths, c.needs(home)...)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// needs lists what one token's driver or module writes to.
func (c tokensConfig) needs(home users.Token) []string {
	if home.Driver == driverTPM {
		return []string{c.TPM} // a socket's needs no leave
	}
	if home.Driver != driverPKCS11 {
		return nil
	}
	name := filepath.Base(home.Location)
	switch {
	case strings.Contains(name, "softhsm"):
		return softHSMTokens()
	case strings.Contains(name, "tpm2_pkcs11"):
		return tpm2PKCS11State()
	}
	return nil
}

// softHSMTokens reads where SoftHSM keeps its tokens, which are files that it locks by opening them for writing: from the file
// that SOFTHSM2_CONF names, or else the user's own or the system's (softhsm2.conf(5)).
func softHSMTokens() []string {
	candidates := []string{os.Getenv("SOFTHSM2_CONF")}
	if candidates[0] == "" {
		home, _ := os.UserHomeDir()
		candidates = []string{filepath.Join(home, ".config/softhsm2/softhsm2.conf"), "/etc/softhsm/softhsm2.conf", "/etc/softhsm2.conf"}
	}
	for _, path := range candidates {
		if directory := setting(path, "directories.tokendir"); directory != "" {
			return []string{directory}
		}
	}
	return nil
}

// setting returns the value of a name in a file of "name = value" lines, or "".
func setting(path, name string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, found := strings.Cut(lines.Text(), "=")
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// tpm2PKCS11State is the store of tpm2-pkcs11, which keeps its database there, and the TPM.
func tpm2PKCS11State() []string {
	store := os.Getenv("TPM2_PKCS11_STORE")
	if store == "" {
		home, _ := os.UserHomeDir()
		store = filepath.Join(home, ".tpm2_pkcs11")
	}
	return []string{store, "/etc/tpm2_pkcs11", "/dev/tpmrm0", "/dev/tpm0"}
}
