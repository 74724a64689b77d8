package main

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// partsSettings tell a parts worker where the echo server, the token and the disk are.
type partsSettings struct {
	Echo clientSettings
	Raw  rawSettings
	File string // is created and appended to
}

// parts makes what a request to sign cannot do without: an echo through a bridge, a signature of the raw token and a record
// that is synced. One after the other, they meet caches and sleeping processors as a request does; each by itself again
// and again, they do not.
type parts struct {
	echo *clients
	raw  *raw
	disk appender
}

// newParts makes a worker that does what the other two kinds do.
func newParts(_ context.Context, settings *json.Decoder) (tasks, error) {
	var s partsSettings
	if err := settings.Decode(&s); err != nil {
		return nil, err
	}
	p := &parts{}
	var err error
	if p.echo, err = newClients(s.Echo); err != nil {
		return nil, err
	}
	if p.raw, err = openRaw(s.Raw); err != nil {
		return nil, err
	}
	if p.disk, err = newAppender(s.File); err != nil {
		return nil, err
	}
	return tasks{"latency": p.latency}, nil
}

// latency times all three together.
func (p *parts) latency(ctx context.Context, o order) (answer, error) {
	key, err := p.raw.key(o.Key)
	if err != nil {
		return answer{}, err
	}
	conn, err := p.echo.echoConn(ctx)
	if err != nil {
		return answer{}, err
	}
	message := make([]byte, echoSize)
	return timed(ctx, o.For, func(context.Context, int) error {
		if err := echoOnce(conn, message); err != nil {
			return err
		}
		if err := p.raw.sign(0, key); err != nil {
			return err
		}
		return p.disk.append()
	})
}

// appender writes as the audit log does, and as much.
type appender struct {
	file   *os.File
	record []byte
}

func newAppender(path string) (appender, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return appender{file, make([]byte, echoSize)}, err
}

// append makes one record durable.
func (a appender) append() error {
	if _, err := a.file.Write(a.record); err != nil {
		return err
	}
	return unix.Fdatasync(int(a.file.Fd()))
}

// appends makes records durable for a time, one after the other.
func (a appender) appends(d time.Duration) (answer, error) {
	return timed(context.Background(), d, func(context.Context, int) error { return a.append() })
}
