package confine

import (
	"errors"
	"fmt"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// harmless are devices that C libraries open for writing without a second thought.
var harmless = []string{"/dev/null", "/dev/zero", "/dev/full"}

// Apply restricts the process, all its threads and its children for good, as far as the kernel can, and
// tells what it could not do; nil when all was granted. Nothing of it can be undone, and a second call only restricts further.
// Call it before any foreign code is loaded.
func Apply(rules Rules) []Notice {
	var notices []Notice
	try := func(what string, err error) {
		if err != nil {
			notices = append(notices, Notice{What: what, Why: err.Error()})
		}
	}
	try("core files are not forbidden", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
	try("other processes of this user may read the memory", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	try("programs with setuid can gain privileges", landlocksys.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	if !rules.Network {
		try("the network is open", forbidNetwork())
	}
	return append(notices, confineFiles(rules)...)
}

// confineFiles restricts what landlock can.
func confineFiles(rules Rules) []Notice {
	const all = "files may be written wherever permissions allow it, and other processes be signalled"
	version, err := landlocksys.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return []Notice{{What: all, Why: "this kernel has no landlock, or it was not enabled at boot: " + err.Error()}}
	case err != nil:
		return []Notice{{What: all, Why: "landlock is refused, maybe by a filter of system calls (SystemCallFilter= of the unit): " + err.Error()}}
	}
	config := landlock.V11
	if rules.Network {
		config.HandledAccessNet = 0
	}
	if err := config.BestEffort().Restrict(pathRules(rules.Write, version)...); err != nil {
		return []Notice{{What: all, Why: err.Error()}}
	}
	return missing(version)
}

// pathRules lets everything be read and executed and unix sockets be connected to, and what is listed be written.
func pathRules(write []string, version int) []landlock.Rule {
	rules := []landlock.Rule{
		landlock.RODirs("/").WithResolveUnix(),
		landlock.RWFiles(harmless...).IgnoreIfMissing(),
	}
	for _, path := range write {
		info, err := os.Stat(path)
		switch {
		case err != nil: // nothing to allow: Rules.Write tells
		case !info.IsDir():
			rules = append(rules, landlock.RWFiles(path).WithIoctlDev().IgnoreIfMissing())
		case version < referVersion:
			rules = append(rules, landlock.RWDirs(path).WithIoctlDev().IgnoreIfMissing())
		default:
			rules = append(rules, landlock.RWDirs(path).WithIoctlDev().WithRefer().IgnoreIfMissing())
		}
	}
	return rules
}

// Versions of the kernel's landlock that brought something (landlock(7), "History").
const (
	referVersion    = 2 // renaming to another directory can be allowed; before, it is always refused
	truncateVersion = 3
	ioctlVersion    = 5
	scopeVersion    = 6
	scopeErratum    = 1 << 1 // threads of one process may signal each other although signals are scoped
)

// missing tells what this version of landlock lacks of what Apply promises.
func missing(version int) []Notice {
	var notices []Notice
	lacks := func(what string) {
		notices = append(notices, Notice{What: what, Why: fmt.Sprintf("this kernel's landlock, version %d, is too old", version)})
	}
	if version < truncateVersion {
		lacks("files that may not be written may be truncated")
	}
	if version < ioctlVersion {
		lacks("all devices may be controlled by ioctl")
	}
	errata, err := landlocksys.LandlockGetErrata()
	if version < scopeVersion || err != nil || errata&scopeErratum == 0 {
		lacks("other processes may be signalled, and their abstract unix sockets be connected to")
	}
	return notices
}
