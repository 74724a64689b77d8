package worker

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chancery/token"
)

// Echoed is a request and a result of the size that a P-256 signature has on the link.
type Echoed struct {
	Capability [64]byte
	Input      []byte
}

// Echo serves net/rpc.
type Echo struct{}

// Sign returns something as long as a signature.
func (Echo) Sign(_ *Echoed, signature *[]byte) error {
	*signature = make([]byte, 72)
	return nil
}

// Nothing returns nothing.
func (Echo) Nothing(_ *struct{}, _ *struct{}) error { return nil }

// beEcho answers frames, or net/rpc, with as little as can be done.
func beEcho() int {
	conn := inheritedLink()
	if os.Getenv("WORKER_TEST_RPC") != "" {
		server := rpc.NewServer()
		if err := server.Register(Echo{}); err != nil {
			return 1
		}
		server.ServeConn(conn)
		return 0
	}
	l := newLink(conn)
	var reading sync.Mutex
	var all sync.WaitGroup
	for range 17 {
		all.Go(func() {
			for answerOne(l, &reading) == nil {
			}
		})
	}
	all.Wait()
	return 0
}

func answerOne(l *link, reading *sync.Mutex) error {
	reading.Lock()
	f, err := l.read()
	if err != nil {
		reading.Unlock()
		return err
	}
	var signatures [][]byte
	if f.kind == kindSign {
		var order Order
		if order, err = parseOrder(f.body); err == nil {
			signatures = [][]byte{make([]byte, 72*len(order.Inputs))}
		}
	}
	number := f.call
	reading.Unlock()
	if err != nil {
		return err
	}
	return l.write(kindResult, number, listSize(signatures), func(b []byte) []byte { return appendList(b, signatures) })
}

// BenchmarkLink measures the link alone: our frames and the standard library's net/rpc, over the same kind of
// socket between two processes.
func BenchmarkLink(b *testing.B) {
	order := Order{KeyID: []byte{1}, Inputs: [][]byte{digest(1)}, Options: crypto.SHA256}
	w := way{hash: byte(crypto.SHA256)}
	for _, codec := range []string{"frames", "net-rpc"} {
		for _, payload := range []string{"nothing", "P-256"} {
			for _, flight := range []int{1, 8, 64} {
				b.Run(fmt.Sprintf("%s/%s/%d", codec, payload, flight), func(b *testing.B) {
					near, child := echoing(b, codec == "net-rpc")
					var call func() error
					if codec == "net-rpc" {
						client := rpc.NewClient(near)
						defer client.Close()
						call = func() error {
							if payload == "nothing" {
								return client.Call("Echo.Nothing", &struct{}{}, &struct{}{})
							}
							var signature []byte
							return client.Call("Echo.Sign", &Echoed{Input: order.Inputs[0]}, &signature)
						}
					} else {
						p := &Process{link: newLink(near), command: child, slots: make(chan struct{}, 16), done: make(chan struct{}), pending: map[uint64]*pending{}, log: slog.New(slog.DiscardHandler)}
						go func() {
							for {
								f, err := p.link.read()
								if err != nil || p.handle(f) != nil {
									return
								}
							}
						}()
						defer near.Close()
						call = func() error { return echoCall(p, payload, &order, w) }
					}
					measure(b, flight, child.Process.Pid, call)
				})
			}
		}
	}
}

func echoCall(p *Process, payload string, order *Order, w way) error {
	p.slots <- struct{}{}
	waiting := newPending()
	waiting.slot = true
	var err error
	if payload == "nothing" {
		_, err = p.begin(waiting, kindPing, 0, nil)
	} else {
		_, err = p.begin(waiting, kindSign, orderSize(order), func(b []byte) []byte { return appendOrder(b, order, w) })
	}
	if err != nil {
		return err
	}
	_, err = await(context.Background(), waiting)
	return err
}

func echoing(b *testing.B, standard bool) (net.Conn, *exec.Cmd) {
	b.Helper()
	near, far, err := socketpair()
	if err != nil {
		b.Fatal(err)
	}
	defer far.Close()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), role+"=echo")
	if standard {
		child.Env = append(child.Env, "WORKER_TEST_RPC=1")
	}
	child.ExtraFiles = []*os.File{far}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		near.Close()
		_ = child.Wait()
	})
	return near, child
}

// measure makes calls, so many at once, and reports the processor time of both processes beside the time.
func measure(b *testing.B, flight, child int, call func() error) {
	b.Helper()
	if err := call(); err != nil {
		b.Fatal(err)
	}
	here, there := ownTime(), timeOf(b, child)
	b.ReportAllocs()
	b.ResetTimer()
	fly(b, flight, b.N, call)
	b.StopTimer()
	here, there = ownTime()-here, timeOf(b, child)-there
	b.ReportMetric(float64(here.Microseconds())/float64(b.N), "cpu-here-µs/op")
	b.ReportMetric(float64(there.Microseconds())/float64(b.N), "cpu-there-µs/op")
}

func fly(b testing.TB, flight, n int, call func() error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	for range flight {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

func ownTime() time.Duration {
	var usage unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// timeOf is the processor time of another process, all its threads (clock_getcpuclockid(3)).
func timeOf(t testing.TB, pid int) time.Duration {
	t.Helper()
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &spent); err != nil {
		t.Fatal(err)
	}
	return time.Duration(spent.Nano())
}

// BenchmarkIsolation measures a SoftHSM key in this process (signed and verified, as by a Vault) and in a process of
// its own, in slices that take turns, so that a machine with other work treats both alike.
func BenchmarkIsolation(b *testing.B) {
	algorithms := []token.Algorithm{token.P256, token.RSA2048}
	s, home := softHSMHome(b, "", algorithms...)
	open, err := openSpecified(b.Context(), encoded(b, s), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer open.Close()
	vault := NewVault(open, slog.New(slog.DiscardHandler))
	p := start(b, s, nil)
	for i, a := range algorithms {
		u := home.unlocking(b, i, byte(i))
		inside, outside := ordering(u, mustUnlock(b, vault, u), digest(1)), ordering(u, mustUnlock(b, p, u), digest(1))
		for _, flight := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", a, flight), func(b *testing.B) {
				compare(b, flight, p.PID(),
					func() error { _, err := vault.Sign(context.Background(), inside); return err },
					func() error { _, err := p.Sign(context.Background(), outside); return err })
			})
		}
	}
}

func encoded(t testing.TB, s specification) []byte {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// compare runs b.N calls of each in slices and reports their time, their processor time, and the ratio of their rates.
func compare(b *testing.B, flight, child int, inside, outside func() error) {
	b.Helper()
	slice := max(flight*8, 200)
	var tookIn, tookOut, cpuIn, cpuHere, cpuThere time.Duration
	b.ResetTimer()
	done := 0
	for ; done < b.N; done += slice {
		began, here := time.Now(), ownTime()
		fly(b, flight, slice, inside)
		tookIn, cpuIn = tookIn+time.Since(began), cpuIn+ownTime()-here
		there := timeOf(b, child)
		began, here = time.Now(), ownTime()
		fly(b, flight, slice, outside)
		tookOut, cpuHere, cpuThere = tookOut+time.Since(began), cpuHere+ownTime()-here, cpuThere+timeOf(b, child)-there
	}
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(done) }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(each(tookIn), "inside-µs")
	b.ReportMetric(each(tookOut), "outside-µs")
	b.ReportMetric(each(cpuIn), "cpu-inside-µs")
	b.ReportMetric(each(cpuHere), "cpu-here-µs")
	b.ReportMetric(each(cpuThere), "cpu-worker-µs")
	b.ReportMetric(float64(tookIn)/float64(tookOut), "rate-ratio")
	b.ReportMetric(float64(cpuIn)/float64(cpuHere+cpuThere), "cpu-ratio")
}

// BenchmarkVerify measures what it costs to look at a signature before it leaves.
func BenchmarkVerify(b *testing.B) {
	s, home := softHome(b, token.P256, token.P384, token.P521, token.RSA2048, token.RSA3072, token.RSA4096, token.Ed25519)
	open, err := openSpecified(b.Context(), encoded(b, s), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer open.Close()
	if err := open.Login(b.Context(), []byte(home.pin)); err != nil {
		b.Fatal(err)
	}
	for _, info := range home.keys {
		key, err := open.Key(b.Context(), info.ID)
		if err != nil {
			b.Fatal(err)
		}
		options := crypto.SHA256
		if info.Algorithm == token.Ed25519 {
			options = noHash
		}
		signature, err := key.Sign(b.Context(), digest(1), options)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(string(info.Algorithm), func(b *testing.B) {
			for b.Loop() {
				if err := token.Verify(info.Public, digest(1), options, signature); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
