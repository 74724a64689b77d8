package bridge_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// eager comes as a client that has begun its inner handshake already.
func (w *world) eager(name, early string) *peer {
	return w.dial(w.ClientAddr, name, append(hello(tunnel.RoleClient, tunnel.EnumFirst), early...))
}

func askingWorld(t *testing.T, within time.Duration) (*world, *witness) {
	return observedWorld(t, func(c *bridge.Config) { c.LegAnswer = within })
}

func TestAnotherLegForOneThatDoesNotAnswer(t *testing.T) {
	w, seen := askingWorld(t, 300*time.Millisecond)
	dead, alive := w.server("server-1"), w.server("server-1")
	client := w.eager("alice", "inner hello")
	first := dead.ack()
	dead.gets("inner hello")
	second := alive.ack()
	alive.gets("inner hello")
	alive.says("inner answer")
	if told := client.ack(); told != second || told.Session == first.Session {
		t.Errorf("the client was told %+v, the servers %+v and %+v", told, first, second)
	}
	client.gets("inner answer")
	dead.ended()
	passes(t, client, alive, "on")
	passes(t, alive, client, "and on")
	tunneltest.Eventually(t, "the observer hears of the silent one", seen.saw("left server no_answer true"))
	if !w.log.Contains("does not answer server=server-1") || w.log.Contains("inner hello") {
		t.Error("the silent leg is not logged, or what went to it is")
	}
	tunneltest.Eventually(t, "what passed is counted", func() bool {
		s := w.Stats()
		return s.BytesUp == uint64(len("inner hello"+"on")) && s.BytesDown == uint64(len("inner answer"+"and on"))
	})
}

// TestAfterASilentLegTheNewestIsTried: of several that may have died together, the last to come is the likeliest to live.
func TestAfterASilentLegTheNewestIsTried(t *testing.T) {
	w, _ := askingWorld(t, 300*time.Millisecond)
	w.server("server-1")
	w.server("server-1")
	newest := w.server("server-1")
	w.eager("alice", "inner hello")
	newest.ack()
	newest.gets("inner hello")
	newest.says("answer")
	tunneltest.Eventually(t, "it is paired", func() bool { s := w.Stats(); return s.Pairs == 1 && s.WaitingServers == 1 })
}

func TestAnAnswerMayNeedMoreOfTheClient(t *testing.T) {
	w, _ := askingWorld(t, 5*time.Second)
	server := w.server("server-1")
	client := w.eager("alice", "a hello")
	server.ack()
	server.gets("a hello")
	client.says(" in ")
	server.gets(" in ")
	client.says("pieces")
	server.gets("pieces")
	server.says("answer")
	client.ack()
	client.gets("answer")
	passes(t, client, server, "each byte once")
}

func TestWithoutAnotherLegTheClientWaitsOn(t *testing.T) {
	w, _ := askingWorld(t, 100*time.Millisecond)
	w.server("server-1")
	client := w.eager("alice", "inner hello")
	tunneltest.Eventually(t, "the client waits again", func() bool { s := w.Stats(); return s.WaitingServers == 0 && s.WaitingClients == 1 })
	late := w.dial(w.ServerAddr, "server-2", hello(tunnel.RoleServer, tunnel.EnumFirst))
	late.ack()
	late.gets("inner hello")
	late.says("answer")
	client.ack()
	passes(t, client, late, "on")
}

func TestALegThatClosesInsteadOfAnswering(t *testing.T) {
	w, _ := askingWorld(t, 10*time.Second)
	leaving, staying := w.server("server-1"), w.server("server-1")
	client := w.eager("alice", "inner hello")
	leaving.ack()
	leaving.Close()
	staying.ack()
	staying.gets("inner hello")
	staying.says("answer")
	client.ack()
	client.gets("answer")
}

func TestAClientThatLeavesEndsTheAsking(t *testing.T) {
	w, _ := askingWorld(t, 10*time.Second)
	asked, untouched := w.server("server-1"), w.server("server-1")
	client := w.eager("alice", "inner hello")
	asked.ack()
	client.Close()
	asked.gets("inner hello")
	asked.ended() // it has said ack to nobody: it cannot wait again
	if s := w.Stats(); s.WaitingServers != 1 || s.Paired != 0 {
		t.Errorf("%+v", s)
	}
	second := w.client("bob")
	if second.ack().Session != untouched.ack().Session {
		t.Error("the other leg is not there for the next client")
	}
}

func TestAskingEndsWithTheQueueWait(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.QueueWait, c.LegAnswer = 200*time.Millisecond, 10*time.Second })
	server := w.server("server-1")
	w.eager("alice", "inner hello").ended()
	server.ack()
	server.gets("inner hello")
	server.ended()
}

func TestAClientMeetsFewSilentLegs(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.LegAnswer = 10 * time.Millisecond })
	const legs = 12
	for range legs {
		w.server("server-1")
	}
	w.eager("alice", "a hello that nobody understands").ended()
	if s := w.Stats(); s.WaitingServers != legs-8 {
		t.Errorf("one client had %d legs dropped", legs-s.WaitingServers)
	}
}

func TestEarlyBytesAreBoundedWhileAsking(t *testing.T) {
	w, _ := askingWorld(t, 10*time.Second)
	server := w.server("server-1")
	client := w.eager("alice", "inner hello")
	server.ack()
	go io.Copy(io.Discard, server)
	_, _ = client.Write(make([]byte, 128<<10)) // the bridge may end it while we write
	client.ended()
}

func TestDrainDoesNotWaitForAnAnswer(t *testing.T) {
	w, _ := askingWorld(t, time.Minute)
	server := w.server("server-1")
	client := w.eager("alice", "inner hello")
	server.ack()
	if err := w.Stop(); err != nil { // it waits for all goroutines
		t.Error(err)
	}
	client.ended()
}

// TestLeavingWhileAsking has either side go at any moment, many times: nothing may hang, and nobody may be left in a queue.
func TestLeavingWhileAsking(t *testing.T) {
	w, _ := askingWorld(t, 20*time.Millisecond)
	var peers sync.WaitGroup
	for i := range 30 {
		server := w.dial(w.ServerAddr, "server-1", hello(tunnel.RoleServer, tunnel.EnumFirst))
		client := w.eager(fmt.Sprintf("user-%d", i%4), "inner hello")
		_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
		pause := time.Duration(i%7) * 4 * time.Millisecond
		peers.Go(func() {
			_, _ = io.ReadFull(server, make([]byte, tunnel.AckSize))
			time.Sleep(pause)
			_, _ = io.WriteString(server, strings.Repeat("x", i%3))
			_ = server.Close()
		})
		peers.Go(func() {
			time.Sleep(time.Duration(i%5) * 5 * time.Millisecond)
			_ = client.Close()
		})
	}
	peers.Wait()
	tunneltest.Eventually(t, "nobody is left", func() bool { s := w.Stats(); return s.WaitingClients+s.WaitingServers+s.Pairs == 0 })
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
}
