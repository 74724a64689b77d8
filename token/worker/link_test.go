package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	"chancery/token"
)

// linked returns both ends of a link in this process.
func linked(t testing.TB) (near, far net.Conn) {
	t.Helper()
	near, file, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if far, err = net.FileConn(file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// No frame is lost, doubled or mixed up with another, whatever their sizes and however many write.
func TestFramesOfManyWriters(t *testing.T) {
	near, far := linked(t)
	from, to := newLink(near), newLink(far)
	const writers, frames = 32, 200
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for n := range frames {
				size := rand.IntN(300)
				if n%50 == 0 {
					size = rand.IntN(300_000)
				}
				body := bytes.Repeat([]byte{byte(w), byte(n)}, size)
				if err := from.writeBytes(byte(w), uint64(n), body); err != nil {
					t.Error(err)
				}
			}
		})
	}
	next := make([]uint64, writers)
	for range writers * frames {
		f, err := to.read()
		if err != nil {
			t.Fatal(err)
		}
		if f.call != next[f.kind] {
			t.Fatalf("writer %d: frame %d instead of %d", f.kind, f.call, next[f.kind])
		}
		next[f.kind]++
		if want := bytes.Repeat([]byte{f.kind, byte(f.call)}, len(f.body)/2); !bytes.Equal(want, f.body) {
			t.Fatalf("writer %d: frame %d holds another's bytes", f.kind, f.call)
		}
	}
	all.Wait()
}

// What was read or written may have been a passphrase.
func TestBuffersAreOverwritten(t *testing.T) {
	near, far := linked(t)
	from, to := newLink(near), newLink(far)
	secret := []byte("the passphrase")
	holds := func(what string, buffer []byte) {
		t.Helper()
		if bytes.Contains(buffer[:cap(buffer)], secret) {
			t.Errorf("%s still has it", what)
		}
	}
	for range 3 {
		for range 2 { // the second one is in the buffer when the first is read
			if err := from.writeBytes(kindUnlock, 1, secret); err != nil {
				t.Fatal(err)
			}
		}
		if err := from.writeBytes(kindUnlock, 2, bytes.Repeat(secret, 10_000)); err != nil {
			t.Fatal(err)
		}
		if err := from.write(kindPing, 0, 0, nil); err != nil {
			t.Fatal(err)
		}
		holds("what is to be written", from.next)
		holds("the spare buffer", from.spare)
		for range 3 {
			before := to.received
			if f, err := to.read(); err != nil || !bytes.Contains(f.body, secret) {
				t.Fatal("no secret", err)
			}
			if &before[0] != &to.received[0] {
				holds("a buffer that was too small", before)
			}
		}
		if _, err := to.read(); err != nil {
			t.Fatal(err)
		}
		holds("what was read", to.received)
	}
	from.next = append(make([]byte, 0, 20), secret...)
	old := from.next
	from.reserve(100)
	holds("a buffer that grew", old)
}

func TestABrokenLinkTellsEveryWriter(t *testing.T) {
	near, far := linked(t)
	l := newLink(near)
	far.Close()
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for l.writeBytes(kindPing, 0, make([]byte, 1<<20)) == nil {
				time.Sleep(time.Millisecond)
			}
		})
	}
	all.Wait()
	if l.write(kindPing, 0, 0, nil) == nil {
		t.Error("a broken link takes frames")
	}
	if _, err := near.Write([]byte{0}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it is not closed: %v", err)
	}
}

// Nobody reads: what waits is bounded, and whoever waits for room is told when the link breaks.
func TestALinkThatNobodyReadsTakesNoMoreThanABound(t *testing.T) {
	near, _ := linked(t)
	l := newLink(near)
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() { _ = l.writeBytes(kindPing, 0, make([]byte, 4<<20)) })
	}
	time.Sleep(200 * time.Millisecond)
	l.mu.Lock()
	waiting := len(l.next)
	l.mu.Unlock()
	if waiting > maxFrame+4<<20 {
		t.Errorf("%d bytes wait", waiting)
	}
	near.Close()
	all.Wait()
	if err := l.writeBytes(kindPing, 0, make([]byte, maxFrame)); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("too large: %v", err)
	}
}

// serving runs a server on a fake token and returns what it ends with.
func serving(t testing.TB, conn net.Conn) <-chan error {
	t.Helper()
	s, _ := newFakeHome(t, fakeConfig{})
	ended := make(chan error, 1)
	go func() {
		ended <- newServer(conn, slog.New(slog.DiscardHandler)).run(func(context.Context, []byte, *slog.Logger) (token.Token, error) {
			return openFake(s.Fake)
		})
	}()
	return ended
}

func askToOpen(t testing.TB, conn net.Conn) *link {
	t.Helper()
	l := newLink(conn)
	text, err := json.Marshal(opening{CallTimeout: time.Minute, Derivations: 5})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.writeBytes(kindOpen, 1, text); err != nil {
		t.Fatal(err)
	}
	if f, err := l.read(); err != nil || f.kind != kindResult {
		t.Fatalf("kind %d, %v", f.kind, err)
	}
	return l
}

func TestAServerIsToldNonsense(t *testing.T) {
	for name, test := range map[string]struct {
		opened bool
		bytes  []byte
		want   error
	}{
		"nothing":                 {false, nil, io.EOF},
		"another kind first":      {false, []byte{0, 0, 0, 9, kindInfo, 0, 0, 0, 0, 0, 0, 0, 1}, errFrame},
		"no opening":              {false, []byte{0, 0, 0, 10, kindOpen, 0, 0, 0, 0, 0, 0, 0, 1, '{'}, errFrame},
		"no time":                 {false, []byte{0, 0, 0, 11, kindOpen, 0, 0, 0, 0, 0, 0, 0, 1, '{', '}'}, errFrame},
		"no derivations":          {false, append([]byte{0, 0, 0, 27, kindOpen, 0, 0, 0, 0, 0, 0, 0, 1}, `{"CallTimeout":10}`...), errFrame},
		"a length of 0":           {true, make([]byte, frameHeader), errFrame},
		"a length of 4 GiB":       {true, bytes.Repeat([]byte{255}, frameHeader), errFrame},
		"half a header":           {true, []byte{0, 0}, io.ErrUnexpectedEOF},
		"half a frame":            {true, []byte{0, 0, 1, 0, kindSign}, io.ErrUnexpectedEOF},
		"another opening":         {true, []byte{0, 0, 0, 11, kindOpen, 0, 0, 0, 0, 0, 0, 0, 1, '{', '}'}, errFrame},
		"an unknown kind":         {true, []byte{0, 0, 0, 9, 200, 0, 0, 0, 0, 0, 0, 0, 1}, errFrame},
		"a result":                {true, []byte{0, 0, 0, 9, kindResult, 0, 0, 0, 0, 0, 0, 0, 1}, errFrame},
		"an empty order":          {true, []byte{0, 0, 0, 9, kindSign, 0, 0, 0, 0, 0, 0, 0, 1}, errFrame},
		"an empty unlock":         {true, []byte{0, 0, 0, 9, kindUnlock, 0, 0, 0, 0, 0, 0, 0, 1}, errFrame},
		"an empty lock":           {true, []byte{0, 0, 0, 9, kindLock, 0, 0, 0, 0, 0, 0, 0, 1}, errFrame},
		"an answer to nobody":     {true, []byte{0, 0, 0, 9, kindAnswer, 0, 0, 0, 0, 0, 0, 0, 1}, nil},
		"cancelling what is none": {true, []byte{0, 0, 0, 9, kindCancel, 0, 0, 0, 0, 0, 0, 0, 1}, nil},
		"the end":                 {true, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := linked(t)
			ended := serving(t, far)
			if test.opened {
				askToOpen(t, near)
			}
			if _, err := near.Write(test.bytes); err != nil {
				t.Error(err)
			}
			if err := near.(*net.UnixConn).CloseWrite(); err != nil {
				t.Error(err)
			}
			if err := <-ended; !errors.Is(err, test.want) {
				t.Errorf("%v, not %v", err, test.want)
			}
		})
	}
}

// TestAServerDerivesAsManyAsItWasTold: the bound is that of the opening, which comes once.
func TestAServerDerivesAsManyAsItWasTold(t *testing.T) {
	near, far := linked(t)
	fake, _ := newFakeHome(t, fakeConfig{})
	s, ended := newServer(far, slog.New(slog.DiscardHandler)), make(chan error, 1)
	go func() {
		ended <- s.run(func(context.Context, []byte, *slog.Logger) (token.Token, error) { return openFake(fake.Fake) })
	}()
	askToOpen(t, near)
	near.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := cap(s.vault.derivations); got != 5 {
		t.Errorf("%d at once", got)
	}
}

func TestRequestsToAServerAreBounded(t *testing.T) {
	near, far := linked(t)
	ended := serving(t, far)
	l := askToOpen(t, near)
	go func() {
		for i := range 5 * maxRequests {
			if l.write(kindInfo, uint64(i), 0, nil) != nil {
				return
			}
		}
	}()
	for range 5 * maxRequests {
		f, err := l.read()
		if err != nil || f.kind != kindResult && f.kind != kindFailure {
			t.Fatalf("kind %d, %v", f.kind, err)
		}
	}
	near.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// No reply is lost or given to another: each caller verifies the signature over a digest that nobody else has.
func TestManyCallsAtOnce(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	p := start(t, s, nil)
	u := home.unlocking(t, 0, 1)
	capability := mustUnlock(t, p, u)
	var all sync.WaitGroup
	for caller := range 64 {
		all.Go(func() {
			for n := range 20 {
				inputs := make([][]byte, n%4)
				for i := range inputs {
					inputs[i] = digest(caller<<16 | n<<8 | i)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if n%7 == 3 { // somebody gives up at any time
					time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, cancel)
				}
				order := ordering(u, capability, inputs...)
				signatures, err := p.Sign(ctx, order)
				if err != nil && ctx.Err() == nil {
					t.Errorf("sign: %v", err)
				}
				for i := range signatures {
					if err := token.Verify(home.keys[0].Public, inputs[i], order.Options, signatures[i]); err != nil {
						t.Errorf("caller %d, request %d, signature %d: %v", caller, n, i, err)
					}
				}
				cancel()
				if n%5 == 0 {
					if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 1 {
						t.Errorf("%d keys, %v", len(keys), err)
					}
				}
			}
		})
	}
	all.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pending) > cap(p.slots)+1 {
		t.Errorf("%d calls are still registered", len(p.pending))
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 9, kindPing, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{0, 0, 0, 11, kindSign, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 9, kindClose, 0, 0, 0, 0, 0, 0, 0, 2})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, stream []byte) {
		near, far := net.Pipe()
		go func() {
			defer near.Close()
			_, _ = near.Write(stream)
		}()
		defer far.Close()
		l := newLink(far)
		var again []byte
		for {
			frame, err := l.read()
			if err != nil {
				break
			}
			again = binary.BigEndian.AppendUint32(again, uint32(9+len(frame.body)))
			again = append(again, frame.kind)
			again = binary.BigEndian.AppendUint64(again, frame.call)
			again = append(again, frame.body...)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Errorf("read %x of %x", again, stream)
		}
	})
}

func FuzzOrder(f *testing.F) {
	order := Order{Holder: Holder{User: 7}, KeyID: []byte{1}, Inputs: [][]byte{digest(1), {}}}
	f.Add(appendOrder(nil, &order, way{hash: 5}))
	f.Add(appendOrder(nil, &order, way{hash: 5, scheme: schemePSS}))
	f.Add(appendOrder(nil, &Order{}, way{scheme: 9}))
	f.Fuzz(func(t *testing.T, body []byte) {
		order, err := parseOrder(body)
		if err != nil {
			return
		}
		w, err := wayOf(order.Options)
		if err != nil {
			t.Fatal(err)
		}
		again := appendOrder(nil, &order, w)
		if !bytes.Equal(body, again) || len(again) != orderSize(&order) {
			t.Errorf("%x is written as %x, %d bytes said", body, again, orderSize(&order))
		}
	})
}

func FuzzSignatures(f *testing.F) {
	f.Add(appendList(nil, [][]byte{{1, 2}, {}, {3}}), 3)
	f.Add([]byte{255, 255, 255, 255}, -1)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		signatures, err := parseSignatures(body, n)
		if err == nil && (len(signatures) != n || !bytes.Equal(appendList(nil, signatures), body)) {
			t.Errorf("%x is written as %x", body, appendList(nil, signatures))
		}
	})
}

func FuzzUnlock(f *testing.F) {
	f.Add(appendUnlock(nil, []byte(`{"Key":{"ID":"AQ=="},"Lasts":5}`), []byte("secret")))
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, body []byte) {
		u, err := parseUnlock(body)
		if err != nil {
			if !errors.Is(err, errFrame) {
				t.Error(err)
			}
			return
		}
		text, err := json.Marshal(u)
		if err != nil {
			return // a time that JSON cannot say
		}
		if len(u.Passphrase) >= 8 && bytes.Contains(text, u.Passphrase) && !bytes.Contains(body[:len(body)-len(u.Passphrase)], u.Passphrase) {
			t.Errorf("the passphrase is in %s", text)
		}
		again, err := parseUnlock(appendUnlock(nil, text, u.Passphrase))
		if err != nil || !reflect.DeepEqual(again.Passphrase, u.Passphrase) || !reflect.DeepEqual(again.Grant.Wrapped, u.Grant.Wrapped) {
			t.Errorf("%+v became %+v, %v", u, again, err)
		}
	})
}

func FuzzCapability(f *testing.F) {
	f.Add(appendCapability(nil, Capability{Number: 1, Secret: [32]byte{2}}))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := parseCapability(body)
		if err == nil && !bytes.Equal(appendCapability(nil, c), body) {
			t.Errorf("%x became %+v", body, c)
		}
	})
}

func FuzzError(f *testing.F) {
	f.Add(encodeError(fmt.Errorf("x: %w", ErrCorrupt)))
	f.Add([]byte(`{"text":"y","is":["gone","gone","nonsense"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		failure, err := parseError(body)
		if err != nil {
			return
		}
		again, err := parseError(encodeError(failure))
		if err != nil {
			t.Fatal(err)
		}
		for _, known := range named {
			if errors.Is(failure, known.err) != errors.Is(again, known.err) {
				t.Errorf("%s: %v became %v", known.name, failure, again)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"Token":{"ID":3}}`))
	f.Add([]byte(`{"Error":{"text":"x","is":["stale"]}}`))
	f.Add([]byte(`{"Error":7}`))
	f.Fuzz(func(_ *testing.T, body []byte) { _, _ = parseAnswer(body) })
}
