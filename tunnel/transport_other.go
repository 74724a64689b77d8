//go:build !linux

package tunnel

import (
	"net"
	"time"
)

// setUserTimeout exists on Linux only; elsewhere retransmission decides.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }
