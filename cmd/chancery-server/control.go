package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"chancery/internal/cli"
)

const (
	controlTimeout = 5 * time.Second
	maxStatusSize  = 4 << 20 // bytes
	statusPath     = "/status"
)

// listenControl makes the daemon's Unix socket, which only the daemon's own user
// can open. A socket that a killed daemon left behind is replaced; a live one is not.
func listenControl(path string) (net.Listener, error) {
	conn, err := net.DialTimeout("unix", path, controlTimeout)
	if err == nil {
		_ = conn.Close()
		return nil, cli.Failed("daemon_running", "another daemon answers on %s; stop it first", path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, controlError(path, err)
		}
	}
	// The mask is the whole process's: whatever else is made at this moment is private as well.
	mask := syscall.Umask(0o177)
	listener, err := net.Listen("unix", path)
	syscall.Umask(mask)
	if err != nil {
		return nil, controlError(path, err)
	}
	return listener, nil
}

func controlError(path string, err error) error {
	return &cli.Error{
		Exit: cli.ExitFailed, Code: "control_socket",
		Message: fmt.Sprintf("cannot make the control socket %s: %s", path, err),
		Hint:    "see control.socket in the configuration; a socket's path may have about 100 bytes", Cause: err,
	}
}

// serveControl answers GET /status until ctx ends.
func serveControl(ctx context.Context, listener net.Listener, status func() liveStatus) error {
	routes := http.NewServeMux()
	routes.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status())
	})
	server := &http.Server{
		Handler: routes, ReadTimeout: controlTimeout, WriteTimeout: controlTimeout,
		IdleTimeout: controlTimeout, MaxHeaderBytes: 8 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// askDaemon reads the live state from the control socket. Nil without an error
// means that no daemon runs.
func askDaemon(ctx context.Context, path string) (*liveStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon"+statusPath, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, daemonSilent(path, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, daemonSilent(path, errors.New(response.Status))
	}
	var status liveStatus
	if err := json.NewDecoder(io.LimitReader(response.Body, maxStatusSize)).Decode(&status); err != nil {
		return nil, daemonSilent(path, err)
	}
	return &status, nil
}

func daemonSilent(path string, err error) error {
	return &cli.Error{
		Exit: cli.ExitUnreachable, Code: "daemon_silent",
		Message: fmt.Sprintf("the daemon does not answer on %s: %s", path, err),
		Hint:    "look at its log; restarting it is safe", Cause: err,
	}
}
