package audit

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// appendForEver appends from four goroutines and prints what was acknowledged, one a line.
func appendForEver(directory string) {
	l, err := Open(Config{Directory: directory, SegmentBytes: 20_000})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := range 4 {
		go func() {
			for j := 0; ; j++ {
				user := fmt.Sprintf("p%d.%d.%d", os.Getpid(), i, j)
				position, err := l.Append(context.Background(), sign(user))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				os.Stdout.WriteString(fmt.Sprintln(user, position.Segment, position.Head))
			}
		}()
	}
	select {}
}

// appender is a process that appends, and what it said was acknowledged.
type appender struct {
	command      *exec.Cmd
	begun        chan struct{} // closed at the first acknowledged record
	done         chan struct{} // closed when its output has ended
	acknowledged map[string]Position
}

func startAppender(t *testing.T, directory string) *appender {
	t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), appenderDirectory+"="+directory)
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	a := &appender{command: command, begun: make(chan struct{}), done: make(chan struct{}), acknowledged: make(map[string]Position)}
	go func() {
		defer close(a.done)
		var once sync.Once
		defer once.Do(func() { close(a.begun) })
		lines := bufio.NewReader(output)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			once.Do(func() { close(a.begun) })
			fields := strings.Fields(line)
			head, err := ParseHead(fields[2])
			if err != nil {
				t.Error(err)
			}
			a.acknowledged[fields[0]] = Position{Segment: fields[1], Head: head}
		}
	}()
	return a
}

// kill ends the process as a crash would, and adds what it said to all.
func (a *appender) kill(t *testing.T, all map[string]Position) {
	t.Helper()
	if err := a.command.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-a.done
	_ = a.command.Wait() // killed, as it should be
	if len(a.acknowledged) == 0 {
		t.Error("a process got nothing acknowledged")
	}
	for user, position := range a.acknowledged {
		all[user] = position
	}
}

func TestKilledProcessesLoseNothing(t *testing.T) {
	dir := directory(t)
	all := make(map[string]Position)
	steady := startAppender(t, dir)
	for range 30 {
		victim := startAppender(t, dir)
		<-victim.begun
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
		victim.kill(t, all)
	}
	steady.kill(t, all)
	l := open(t, Config{Directory: dir}) // puts right what the last one left
	t.Logf("%d acknowledged records, head at %d", len(all), l.Head().Seq)
	mustVerify(t, dir, l.Head())
	mustHold(t, dir, all)
}

// Neither of two processes that append all the time keeps the other from its turn.
func TestTwoProcessesTakeTurns(t *testing.T) {
	dir := directory(t)
	one, other := startAppender(t, dir), startAppender(t, dir)
	<-one.begun
	<-other.begun
	time.Sleep(300 * time.Millisecond)
	all := make(map[string]Position)
	one.kill(t, all)
	other.kill(t, all)
	t.Logf("%d and %d acknowledged", len(one.acknowledged), len(other.acknowledged))
	if less := min(len(one.acknowledged), len(other.acknowledged)); less < len(all)/20 {
		t.Errorf("one process got %d of %d records in", less, len(all))
	}
	l := open(t, Config{Directory: dir})
	mustVerify(t, dir, l.Head())
	mustHold(t, dir, all)
}
