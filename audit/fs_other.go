//go:build unix && !linux

package audit

import "os"

func syncData(f *os.File) error { return f.Sync() }

// dropCache has nothing portable to call.
func dropCache(*os.File) error { return nil }
