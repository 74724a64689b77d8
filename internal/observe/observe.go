// Package observe shows operators how a program is: Prometheus metrics at
// /metrics, whether the process lives at /healthz, and whether it can do its work at
// /readyz. It listens on a loopback address or a Unix socket, apart from
// everything else, and only where the configuration says so.
package observe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// ErrAddress is wrapped by the errors of Listen and Validate. Its text says what to change.
var ErrAddress = errors.New("observe: address")

const (
	unixPrefix     = "unix:"
	socketMode     = 0o660 // the service's group may look
	requestTimeout = 15 * time.Second
	maxConnections = 32
	maxScrapes     = 4 // at once
)

// Validate refuses an address that Listen would refuse whatever the machine. An
// empty one, which stands for nothing to be shown, is fine.
func Validate(address string, anyAddress bool) error {
	if path, local := strings.CutPrefix(address, unixPrefix); local {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%w %q: the path of a Unix socket starts with a slash, for example unix:/run/chancery/observe.sock", ErrAddress, address)
		}
		return nil
	}
	if address == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return fmt.Errorf("%w %q: neither host:port, for example 127.0.0.1:9464, nor unix:/path", ErrAddress, address)
	}
	if ip := net.ParseIP(host); !anyAddress && (host == "" || ip != nil && !ip.IsLoopback()) {
		return notLoopback(address)
	}
	return nil
}

func notLoopback(address string) error {
	return fmt.Errorf("%w %q is not this machine's own (127.0.0.1, ::1 or a Unix socket), and whoever reaches it can read it: nobody is asked for a password; "+
		"unsafe_any_address = true allows it all the same", ErrAddress, address)
}

// Listen opens the address: "host:port" of a loopback interface (of any with
// anyAddress), or "unix:/path". A socket that a killed process left behind is replaced.
func Listen(address string, anyAddress bool) (net.Listener, error) {
	if err := Validate(address, anyAddress); err != nil {
		return nil, err
	}
	if path, local := strings.CutPrefix(address, unixPrefix); local {
		return listenUnix(path)
	}
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrAddress, address, err)
	}
	if !anyAddress && !resolved.IP.IsLoopback() {
		return nil, notLoopback(address)
	}
	listener, err := net.ListenTCP("tcp", resolved)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrAddress, address, err)
	}
	return listener, nil
}

func listenUnix(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("%w %s%s: %w", ErrAddress, unixPrefix, path, err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w %s%s: %w", ErrAddress, unixPrefix, path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("%w %s%s: %w", ErrAddress, unixPrefix, path, err), listener.Close())
	}
	return listener, nil
}

// removeStale removes a socket on which nobody listens, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("something that is no socket is in its place")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("another process listens there: %w", syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// Page is what one program shows.
type Page struct {
	Registry *prometheus.Registry
	Alive    []Check // for /healthz: a process that fails one should be restarted
	Ready    []Check // for /readyz: a process that fails one should get no work
	Log      *slog.Logger
}

// Handler answers GET /metrics, /healthz and /readyz.
func (p Page) Handler() http.Handler {
	routes := http.NewServeMux()
	routes.Handle("GET /metrics", promhttp.HandlerFor(p.Registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: requestTimeout,
		ErrorLog: scrapeLog{p.Log}, ErrorHandling: promhttp.ContinueOnError,
	}))
	routes.Handle("GET /healthz", newVerdict(p.Alive))
	routes.Handle("GET /readyz", newVerdict(append(p.Alive[:len(p.Alive):len(p.Alive)], p.Ready...)))
	return routes
}

// Serve shows the page to whoever connects until ctx ends, and closes the listener.
func (p Page) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: p.Handler(), ReadTimeout: requestTimeout, WriteTimeout: 2 * requestTimeout,
		IdleTimeout: requestTimeout, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(newLimited(listener, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// scrapeLog logs metrics that could not be collected.
type scrapeLog struct{ log *slog.Logger }

func (l scrapeLog) Println(v ...any) {
	l.log.Error("metrics cannot be collected", "error", fmt.Sprint(v...))
}
