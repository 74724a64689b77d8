package confine

import (
	"os"

	"golang.org/x/sys/unix"
)

// allocate maps whole pages for a secret of that length and protects them as far as the kernel lets it.
func allocate(length int) (region []byte, mapped bool, notices []Notice) {
	page := os.Getpagesize()
	size := (max(length, 1) + page - 1) / page * page
	region, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, max(length, 1)), false, []Notice{{What: "secrets are in ordinary memory", Why: "mmap: " + err.Error()}}
	}
	try := func(what, call string, err error) {
		if err != nil {
			notices = append(notices, Notice{What: what, Why: call + ": " + err.Error()})
		}
	}
	try("secrets may be swapped out to disk", "mlock, bounded by RLIMIT_MEMLOCK", unix.Mlock(region))
	try("core files may hold secrets", "madvise", unix.Madvise(region, unix.MADV_DONTDUMP))
	try("child processes inherit secrets", "madvise", unix.Madvise(region, unix.MADV_DONTFORK))
	return region, true, notices
}

// release gives back what allocate has mapped; the kernel unlocks it with that.
func release(region []byte) { _ = unix.Munmap(region) }
