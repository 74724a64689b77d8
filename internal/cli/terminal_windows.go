package cli

import "os"

func openTerminal() (*os.File, error) { return os.OpenFile("CONIN$", os.O_RDWR, 0) }

// ForbidCoreDumps does nothing on Windows, where dumps are the administrator's setting.
func ForbidCoreDumps() error { return nil }
