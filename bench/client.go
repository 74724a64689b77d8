package main

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/certfile"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// clientSettings tell a client worker whom to talk to.
type clientSettings struct{ Bridge, CA, Certificate, Key, Passphrase string }

// clients are the connections of a client worker, made when they are first
// needed and kept, with keys unlocked.
type clients struct {
	settings clientSettings
	tunnel   *tunnel.Config
	wire     []*wireClient
	library  *client.Client
	unlocked map[string]*client.Key // of library
	idle     []*tunnel.Conn
}

func newClientTasks(_ context.Context, settings *json.Decoder) (tasks, error) {
	var s clientSettings
	if err := settings.Decode(&s); err != nil {
		return nil, err
	}
	c, err := newClients(s)
	if err != nil {
		return nil, err
	}
	return tasks{
		"rate": c.rate, "latency": c.latency, "library": c.libraryRate,
		"echo": c.echo, "connect echo": c.connectEcho, "connect": c.connect, "hold": c.hold,
	}, nil
}

func newClients(s clientSettings) (*clients, error) {
	identity, _, err := certfile.Load(certfile.Files{CA: s.CA, Certificate: s.Certificate, Key: s.Key})
	if err != nil {
		return nil, err
	}
	return &clients{
		settings: s, unlocked: make(map[string]*client.Key),
		tunnel: &tunnel.Config{Bridge: s.Bridge, Outer: identity.OuterDialer("localhost"), Inner: identity.InnerDialer("server.lab")},
	}, nil
}

// connections returns at least n connections on which the key is unlocked.
func (c *clients) connections(ctx context.Context, n int, key string) ([]*wireClient, error) {
	for len(c.wire) < n {
		w, err := dialWire(ctx, c.tunnel)
		if err != nil {
			return nil, err
		}
		c.wire = append(c.wire, w)
	}
	for _, w := range c.wire[:n] {
		if err := w.unlock(key, c.settings.Passphrase); err != nil {
			return nil, err
		}
	}
	return c.wire[:n], nil
}

// rate keeps Parallel requests in flight on each of the connections until the
// time is up, then takes in what is still on its way.
func (c *clients) rate(ctx context.Context, o order) (answer, error) {
	connections, err := c.connections(ctx, max(o.Connections, 1), o.Key)
	if err != nil {
		return answer{}, err
	}
	var (
		count, steady atomic.Int64
		all           errgroup.Group
		load          = newSpan(o.For)
	)
	for _, w := range connections {
		all.Go(func() error {
			made, madeSteadily, err := w.sign(o, load, true)
			count.Add(int64(made))
			steady.Add(int64(madeSteadily))
			return err
		})
	}
	err = all.Wait()
	if o.Batch > 0 {
		steady.Store(0) // a batch ends at once: few of a hundred would or would not fall into the steady part
	}
	return load.answer(int(count.Load()), int(steady.Load())), err
}

// latency times single requests on a warm connection.
func (c *clients) latency(ctx context.Context, o order) (answer, error) {
	connections, err := c.connections(ctx, 1, o.Key)
	if err != nil {
		return answer{}, err
	}
	o.Parallel = 1
	return timed(ctx, o.For, func(context.Context, int) error {
		_, _, err := connections[0].sign(o, span{}, false)
		return err
	})
}

// libraryRate signs with the client library, which verifies each signature: from
// Parallel goroutines on one connection.
func (c *clients) libraryRate(ctx context.Context, o order) (answer, error) {
	key, err := c.libraryKey(ctx, o.Key)
	if err != nil {
		return answer{}, err
	}
	digest := client.Digest{Hash: documentHash, Sum: document(0)}
	if o.Key == "ed25519" {
		digest.Hash = 0
	}
	if o.Batch == 0 {
		return until(ctx, o.Parallel, o.For, func(ctx context.Context, _ int) error {
			_, err := key.SignContext(ctx, digest.Sum, digest.Hash)
			return err
		})
	}
	digests := make([]client.Digest, o.Batch)
	for i := range digests {
		digests[i] = digest
	}
	a, err := until(ctx, o.Parallel, o.For, func(ctx context.Context, _ int) error {
		_, err := c.library.SignAll(ctx, o.Key, digests)
		return err
	})
	a.Count, a.Steady = a.Count*o.Batch, 0
	return a, err
}

// libraryKey returns a key, unlocked once.
func (c *clients) libraryKey(ctx context.Context, name string) (*client.Key, error) {
	if key, done := c.unlocked[name]; done {
		return key, nil
	}
	if c.library == nil {
		library, err := client.Connect(ctx, &client.Config{Tunnel: c.tunnel, InFlight: 64, BatchSize: 100})
		if err != nil {
			return nil, err
		}
		c.library = library
	}
	if err := c.library.Unlock(ctx, name, []byte(c.settings.Passphrase)); err != nil {
		return nil, err
	}
	key, err := c.library.Key(ctx, name)
	if err == nil {
		c.unlocked[name] = key
	}
	return key, err
}

// connect opens connections, one after another on each of Parallel goroutines.
// A connect counts when the server has answered the first request.
func (c *clients) connect(ctx context.Context, o order) (answer, error) {
	return c.connects(ctx, o, func(conn *tunnel.Conn) error {
		w := newWireClient(conn)
		_, err := w.ask(&wire.WhoAmI{})
		return err
	})
}

// connectEcho is connect at an echo server.
func (c *clients) connectEcho(ctx context.Context, o order) (answer, error) {
	return c.connects(ctx, o, func(conn *tunnel.Conn) error { return echoOnce(conn, make([]byte, echoSize)) })
}

func (c *clients) connects(ctx context.Context, o order, first func(*tunnel.Conn) error) (answer, error) {
	var mu sync.Mutex
	var samples []time.Duration
	a, err := until(ctx, max(o.Parallel, 1), o.For, func(ctx context.Context, _ int) error {
		begin := time.Now()
		conn, err := tunnel.Dial(ctx, c.tunnel)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := first(conn); err != nil {
			return err
		}
		took := time.Since(begin)
		mu.Lock()
		defer mu.Unlock()
		samples = append(samples, took)
		return nil
	})
	a.Samples = samples
	return a, err
}

// hold opens connections until there are as many idle ones as asked for.
func (c *clients) hold(ctx context.Context, o order) (answer, error) {
	for len(c.idle) < o.Connections {
		conn, err := tunnel.Dial(ctx, c.tunnel)
		if err != nil {
			return answer{}, err
		}
		if _, err := newWireClient(conn).ask(&wire.WhoAmI{}); err != nil {
			return answer{}, err
		}
		c.idle = append(c.idle, conn)
	}
	return answer{Count: len(c.idle)}, nil
}

// echo times round trips of one connection to an echo server.
func (c *clients) echo(ctx context.Context, o order) (answer, error) {
	conn, err := c.echoConn(ctx)
	if err != nil {
		return answer{}, err
	}
	message := make([]byte, echoSize)
	return timed(ctx, o.For, func(context.Context, int) error { return echoOnce(conn, message) })
}

// echoConn returns a connection to an echo server, dialled once.
func (c *clients) echoConn(ctx context.Context) (*tunnel.Conn, error) {
	if len(c.idle) == 0 {
		conn, err := tunnel.Dial(ctx, c.tunnel)
		if err != nil {
			return nil, err
		}
		c.idle = append(c.idle, conn)
	}
	return c.idle[0], nil
}
