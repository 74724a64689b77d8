package tunnel

import (
	"net"
	"syscall"
	"testing"
	"time"
)

func TestUnacknowledgedDataHasALimit(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	transport := NewTransport(conn, DefaultKeepAlive())
	defer transport.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set int
	if err := raw.Control(func(fd uintptr) {
		set, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
	}); err != nil {
		t.Fatal(err)
	}
	if want := 30 * time.Second; time.Duration(set)*time.Millisecond != want {
		t.Errorf("TCP_USER_TIMEOUT is %d ms, not %s", set, want)
	}
}
