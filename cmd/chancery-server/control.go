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
	refreshPath    = "/refresh"
)

// listenControl makes the daemon's Unix socket, which only the daemon's own user
// can open. A socket that a killed daemon left behind is replaced; a live one is not.
func listenControl(path string) (net.Listener, error) {
	conn, err := net.DialTimeout("unix", path, controlTimeout)
	if err == nil {
		_ = conn.Close()
		return nil, cli.Failed("daemon_running", "another daemon answers on %s; stop it first", path)
	}
	// A path that is no socket refuses the connection as well (unix(7)), and is left alone.
	if info, statErr := os.Lstat(path); errors.Is(err, syscall.ECONNREFUSED) && statErr == nil && info.Mode().Type() == fs.ModeSocket {
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

// serveControl answers GET /status, and POST /refresh once the daemon has taken up what the
// database holds, until ctx ends.
func serveControl(ctx context.Context, listener net.Listener, status func() liveStatus, refresh func(context.Context) error) error {
	routes := http.NewServeMux()
	routes.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status())
	})
	routes.HandleFunc("POST "+refreshPath, func(w http.ResponseWriter, r *http.Request) {
		if err := refresh(r.Context()); err != nil {
			http.Error(w, "the database cannot be read", http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
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

// errNoDaemon says that nobody listens on the control socket.
var errNoDaemon = errors.New("no daemon runs")

// askDaemon reads the live state from the control socket. Nil without an error
// means that no daemon runs.
func askDaemon(ctx context.Context, path string) (*liveStatus, error) {
	var status liveStatus
	err := callDaemon(ctx, path, http.MethodGet, statusPath, func(body io.Reader) error {
		return json.NewDecoder(io.LimitReader(body, maxStatusSize)).Decode(&status)
	})
	if errors.Is(err, errNoDaemon) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &status, nil
}

// refreshDaemon has a running daemon take up a change before the command ends. It returns nil where none runs.
func refreshDaemon(ctx context.Context, path string) error {
	err := callDaemon(ctx, path, http.MethodPost, refreshPath, func(io.Reader) error { return nil })
	if errors.Is(err, errNoDaemon) {
		return nil
	}
	return err
}

func callDaemon(ctx context.Context, path, method, route string, read func(io.Reader) error) error {
	err := callWithin(ctx, controlTimeout, path, method, route, read)
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // the command was stopped, whatever that looks like from here
	}
	return err
}

func callWithin(ctx context.Context, limit time.Duration, path, method, route string, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, method, "http://daemon"+route, http.NoBody)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return errNoDaemon
	}
	if err != nil {
		return daemonSilent(path, err)
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return daemonSilent(path, errors.New(response.Status))
	}
	if err := read(response.Body); err != nil {
		return daemonSilent(path, err)
	}
	return nil
}

func daemonSilent(path string, err error) error {
	return &cli.Error{
		Exit: cli.ExitUnreachable, Code: "daemon_silent",
		Message: fmt.Sprintf("the daemon does not answer on %s: %s", path, forPeople(err)),
		Hint:    "look at its log; restarting it is safe", Cause: err,
	}
}
