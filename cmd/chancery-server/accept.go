package main

import (
	"context"

	"chancery/internal/canary"
	"chancery/signer"
	"chancery/tunnel"
)

// door lets clients in, and the canary between them. One goroutine uses it.
type door struct {
	listener *tunnel.Listener
	gate     *canary.Gate // nil without a canary
	pending  *canary.Conn // came at the same moment as a client
}

// accept is a signer.AcceptFunc.
func (d *door) accept(ctx context.Context) (signer.Conn, error) {
	if d.gate == nil {
		return named(d.listener.Accept(ctx))
	}
	if conn := d.pending; conn != nil {
		d.pending = nil
		return conn, nil
	}
	waiting, stop := context.WithCancel(ctx)
	came := make(chan *canary.Conn, 1)
	go func() {
		defer close(came)
		select {
		case conn := <-d.gate.Arriving():
			came <- conn
			stop()
		case <-waiting.Done():
		}
	}()
	conn, err := named(d.listener.Accept(waiting))
	stop()
	bird, arrived := <-came
	switch {
	case !arrived:
		return conn, err
	case err != nil: // because it arrived
		return bird, nil
	}
	d.pending = bird
	return conn, nil
}

// named returns no conn with an error: a nil *tunnel.Conn would not be a nil signer.Conn.
func named(conn *tunnel.Conn, err error) (signer.Conn, error) {
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// entrance makes the door for clients, and the canary where one is configured.
func (d *daemon) entrance() *door {
	if d.config.Observe.CanaryKey == "" {
		return &door{listener: d.listener}
	}
	gate := canary.NewGate()
	d.canary = d.config.Observe.canary(gate)
	return &door{listener: d.listener, gate: gate}
}
