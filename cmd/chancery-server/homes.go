package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"chancery/token"
	"chancery/token/guard"
	"chancery/token/replica"
	"chancery/users"
)

// openGuarded opens a registered token without login, together with its replicas. No PIN reaches any of them that it rejected
// earlier, which the directory remembers.
func (c tokensConfig) openGuarded(ctx context.Context, t users.Token, pins string, log *slog.Logger) (token.Token, error) {
	memory := guard.New(pins)
	if len(t.Replicas) == 0 {
		open, err := c.open(ctx, t)
		if err != nil {
			return nil, err
		}
		return memory.Wrap(open), nil
	}
	cfg := c.replicaTimes()
	cfg.Serial, cfg.Log = t.Serial, log
	for _, home := range t.Homes() {
		cfg.Members = append(cfg.Members, replica.Member{Name: home.Name, Open: func(ctx context.Context) (token.Token, error) {
			open, err := c.openHome(ctx, home)
			if err != nil {
				return nil, err
			}
			return memory.Wrap(open), nil
		}})
	}
	open, err := replica.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return open, nil
}

// openHome opens one of several tokens that hold the same keys, if it is the registered one.
func (c tokensConfig) openHome(ctx context.Context, home users.Token) (token.Token, error) {
	open, err := c.open(ctx, home)
	if err != nil {
		return nil, err
	}
	info, err := open.Info(ctx)
	if err == nil && info.Serial != home.Serial {
		err = fmt.Errorf("%w: another token, with serial number %q instead of %q, is in its place", token.ErrTokenAbsent, info.Serial, home.Serial)
	}
	if err != nil {
		return nil, errors.Join(err, open.Close())
	}
	return open, nil
}

// replicaShare is the part of tokens.call_timeout that a call to several tokens takes at most, so that a token that
// hangs is left out before the daemon ends the process that the others are in.
const replicaShare = 0.8

// replicaTimes are the default times of package replica, or shorter ones in the same proportion where tokens.call_timeout
// leaves less.
func (c tokensConfig) replicaTimes() replica.Config {
	const longest = replica.DefaultAwaitMember + max(replica.DefaultSignTimeout, replica.DefaultCallTimeout)
	scale := 1.0
	if c.CallTimeout > 0 {
		scale = min(1, replicaShare*float64(c.CallTimeout)/float64(longest))
	}
	scaled := func(standard time.Duration) time.Duration { return time.Duration(scale * float64(standard)) }
	return replica.Config{
		SignTimeout: scaled(replica.DefaultSignTimeout),
		CallTimeout: scaled(replica.DefaultCallTimeout),
		AwaitMember: scaled(replica.DefaultAwaitMember),
	}
}

// withFewSessions is the token as operators' commands open it and its replicas: with as few sessions as possible.
func withFewSessions(t users.Token, sessions int) users.Token {
	t.MaxSessions, t.Replicas = sessions, slices.Clone(t.Replicas)
	for i := range t.Replicas {
		t.Replicas[i].MaxSessions = sessions
	}
	return t
}
