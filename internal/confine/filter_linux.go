package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// architectures are those that forbidNetwork knows, as the kernel names them to a filter. All are little-endian and make
// every socket with socket(2).
var architectures = map[string]uint32{
	"amd64":   unix.AUDIT_ARCH_X86_64,
	"arm64":   unix.AUDIT_ARCH_AARCH64,
	"riscv64": unix.AUDIT_ARCH_RISCV64,
}

// Offsets in the kernel's struct seccomp_data (seccomp(2)).
const (
	offsetNumber       = 0
	offsetArchitecture = 4
	offsetArgument0    = 16 // its lower half
)

// x32 marks system calls of amd64's second interface, which have numbers of their own.
const x32 = 0x40000000

// forbidNetwork refuses new sockets that reach further than this machine. It takes PR_SET_NO_NEW_PRIVS.
func forbidNetwork() error {
	architecture, ok := architectures[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("there is no filter of system calls for %s", runtime.GOARCH)
	}
	return install(networkFilter(architecture))
}

// networkFilter lets socket(2) make unix and netlink sockets only. System calls by another interface of the same processor, whose
// numbers differ, are refused altogether.
func networkFilter(architecture uint32) []unix.SockFilter {
	refuse := func(errno unix.Errno) unix.SockFilter {
		return statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(errno))
	}
	return []unix.SockFilter{
		load(offsetArchitecture),
		equal(architecture, 1, 0),
		refuse(unix.ENOSYS),
		load(offsetNumber),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32, Jt: 1},
		equal(unix.SYS_IO_URING_SETUP, 0, 1),
		refuse(unix.ENOSYS),
		equal(unix.SYS_SOCKET, 0, 4),
		load(offsetArgument0),
		equal(unix.AF_UNIX, 2, 0),
		equal(unix.AF_NETLINK, 1, 0),
		refuse(unix.EAFNOSUPPORT),
		statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW),
	}
}

func statement(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func load(offset uint32) unix.SockFilter {
	return statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset)
}

// equal skips as many statements when the loaded word is k, or when it is not.
func equal(k uint32, then, otherwise uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: then, Jf: otherwise}
}

// install puts the filter on all threads at once.
func install(filter []unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	switch {
	case errno != 0:
		return fmt.Errorf("no filter of system calls: %w", errno)
	case thread != 0:
		return fmt.Errorf("no filter of system calls: thread %d has one of its own", thread)
	}
	return nil
}
