package main

import (
	"context"
	"encoding/json"
	"io"
	"net"

	"chancery/internal/certfile"
	"chancery/tunnel"
)

// echoSize is about what a request to sign and its reply have, in bytes.
const echoSize = 300

// echoLegs is how many legs the server keeps waiting by default; the echo server does the same.
const echoLegs = 8

// echoSettings tell an echo worker at which bridge to wait.
type echoSettings struct{ Bridge, CA, Certificate, Key string }

// newEcho answers every client at a bridge with what it sends: the tunnel
// without anything at its end.
func newEcho(ctx context.Context, settings *json.Decoder) (tasks, error) {
	var s echoSettings
	if err := settings.Decode(&s); err != nil {
		return nil, err
	}
	identity, _, err := certfile.Load(certfile.Files{CA: s.CA, Certificate: s.Certificate, Key: s.Key})
	if err != nil {
		return nil, err
	}
	listener := tunnel.Listen(ctx, &tunnel.Config{Bridge: s.Bridge, Outer: identity.OuterDialer("localhost"), Inner: identity.InnerAcceptor()}, echoLegs)
	go func() {
		for {
			conn, err := listener.Accept(ctx)
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return tasks{}, nil
}

// echoOnce makes one round trip.
func echoOnce(conn net.Conn, message []byte) error {
	if _, err := conn.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, message)
	return err
}
