//go:build !linux

package main

import "chancery/internal/cli"

// hideMemory keeps PINs and passphrases out of core files.
func hideMemory() error { return cli.ForbidCoreDumps() }
