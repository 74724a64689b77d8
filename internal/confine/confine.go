// Package confine takes from a process what it does not need, at its start and for good: for a
// process that loads somebody else's code (a PKCS#11 module) and holds a PIN.
//
// # What Apply takes away
//
//   - Memory: no core files (RLIMIT_CORE 0), and no other process of the same user may trace
//     this one or read /proc/PID/mem (PR_SET_DUMPABLE 0).
//   - Privileges: neither this process nor what it executes gains any by setuid, setgid or file
//     capabilities (PR_SET_NO_NEW_PRIVS).
//   - Files: everything may be read and executed as before, because modules read configuration
//     anywhere, but written, created, removed, renamed and truncated only below Rules.Write; the
//     same holds for ioctl(2) on devices (landlock(7)).
//   - Network, unless Rules.Network: no new socket but of the families unix and netlink (pcscd, the
//     system's bus, the lookup of users and of devices go on working), and no io_uring, which would make sockets
//     past that filter (seccomp(2)). Where landlock has rules for ports, it refuses bind and connect as well.
//   - Others: no signal to a process outside, no connection to an abstract unix socket of
//     one outside, no tracing of one outside (landlock).
//
// Everything holds for all threads, those of C libraries included, and for every child.
//
// # What it cannot take away
//
// Descriptors that are open already keep what they may do, sockets among them: open none that the module should not have.
// Unix sockets by path stay reachable, so what listens there has to check who calls. Reading is not narrowed:
// file permissions decide. Metadata (chmod, chown, utimes, extended attributes) of files that belong to the user is beyond landlock.
// With Rules.Network, everything of the network is open. What a kernel lacks is in the notices.
package confine

// Rules says what stays allowed.
type Rules struct {
	// Write lists directories, with everything below them, and files, devices among them, that may be written
	// and, if devices, be controlled by ioctl(2). What does not exist when Apply runs is left out and
	// cannot be made later, unless a directory above it is listed: make it first.
	Write []string
	// Network lets the process use all of the network.
	Network bool
}

// Notice is a restriction that this process goes without.
type Notice struct {
	What string // what is not restricted, such as "network"
	Why  string // what refused it, such as a kernel that lacks it
}

// String is one sentence for a log.
func (n Notice) String() string { return n.What + ": " + n.Why }
