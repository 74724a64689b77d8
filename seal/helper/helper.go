// Package helper asks a seal's hardware from a process of its own.
//
// A call into a PKCS#11 module, or to a TPM's device, can hang for ever, and a module can crash its process. Here both happen to a
// helper: the same program, started again, which answers one question over its standard input and output
// and ends. When the question's context ends first, the helper is killed. Before it loads anything it gives up what it does not need
// (package confine).
package helper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"chancery/internal/confine"
	"chancery/seal"
)

// maxMessage bounds what either side reads, in bytes.
const maxMessage = 64 << 10

// killedWithin is how long after its kill a helper may keep the pipes open.
const killedWithin = 2 * time.Second

// question is what a helper is asked.
type question struct {
	Kind       string        `json:"kind"`
	Parameters []byte        `json:"parameters"`
	Secret     []byte        `json:"secret,omitempty"` // a PIN
	Rules      confine.Rules `json:"rules"`
	New        bool          `json:"new,omitempty"` // make a share; else give the one that is kept
	Kept       []byte        `json:"kept,omitempty"`
	Within     time.Duration `json:"within"`
}

// answer is what it says.
type answer struct {
	Share []byte `json:"share,omitempty"`
	Kept  []byte `json:"kept,omitempty"`
	Code  string `json:"code,omitempty"`  // of the error
	Error string `json:"error,omitempty"` // in words

	Notices []confine.Notice `json:"notices,omitempty"`
}

// codes carry the errors of package seal across.
var codes = map[string]error{
	"absent": seal.ErrAbsent, "foreign": seal.ErrForeign, "changed": seal.ErrChanged, "pin": seal.ErrPIN,
	"pin_tries": seal.ErrPINTries, "unsuitable": seal.ErrUnsuitable,
}

// remoteError is an error of the helper's: its words, and the sentinel that it wrapped.
type remoteError struct {
	words    string
	sentinel error
}

func (e *remoteError) Error() string { return e.words }
func (e *remoteError) Unwrap() error { return e.sentinel }

// Keeper is a seal.Keeper that a helper works for.
type Keeper struct {
	// Command makes the process: this program, in the role that calls Serve.
	Command    func(ctx context.Context) *exec.Cmd
	Kind       string
	Parameters []byte
	Secret     []byte        // given to the helper by its standard input
	Rules      confine.Rules // what the helper keeps the right to
	Log        *slog.Logger  // gets what the helper could not give up
}

var _ seal.Keeper = (*Keeper)(nil)

// New has the helper make a share.
func (k *Keeper) New(ctx context.Context) (share, kept []byte, err error) {
	a, err := k.ask(ctx, question{New: true})
	return a.Share, a.Kept, err
}

// Share has the helper give the share again.
func (k *Keeper) Share(ctx context.Context, kept []byte) ([]byte, error) {
	a, err := k.ask(ctx, question{Kept: kept})
	return a.Share, err
}

func (k *Keeper) ask(ctx context.Context, q question) (a answer, err error) {
	q.Kind, q.Parameters, q.Secret, q.Rules = k.Kind, k.Parameters, k.Secret, k.Rules
	if deadline, ok := ctx.Deadline(); ok {
		q.Within = time.Until(deadline)
	}
	asked, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	defer clear(asked)
	command := k.Command(ctx)
	command.Stdin = bytes.NewReader(asked)
	command.WaitDelay = killedWithin
	var said, complaint limited
	defer func() { clear(said.kept.Bytes()) }()
	command.Stdout, command.Stderr = &said, &complaint
	err = command.Run()
	if ctx.Err() != nil {
		return a, fmt.Errorf("%w: it did not answer in time: %w", seal.ErrAbsent, ctx.Err())
	}
	if err != nil {
		return a, fmt.Errorf("%w: the helper process failed: %w: %.512q", seal.ErrAbsent, err, complaint.kept.String())
	}
	if err := json.Unmarshal(said.kept.Bytes(), &a); err != nil {
		return answer{}, fmt.Errorf("%w: the helper process answered something else", seal.ErrAbsent)
	}
	for _, notice := range a.Notices {
		k.Log.Warn("a seal's helper process goes without a restriction", "kind", k.Kind, "what", notice.What, "why", notice.Why)
	}
	return a, a.err()
}

func (a answer) err() error {
	if a.Error == "" {
		return nil
	}
	sentinel, known := codes[a.Code]
	if !known {
		sentinel = seal.ErrAbsent
	}
	return &remoteError{a.Error, sentinel}
}

// Program is what the helper's process is made of.
type Program struct {
	Confine func(confine.Rules) []confine.Notice // confine.Apply, which holds for good
	Keeper  func(kind string, parameters, secret []byte) (seal.Keeper, error)
}

// Serve answers one question in the helper's process.
func (p Program) Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(io.LimitReader(in, maxMessage))
	if err != nil {
		return fmt.Errorf("seal/helper: read the question: %w", err)
	}
	defer clear(text)
	var q question
	if err := json.Unmarshal(text, &q); err != nil {
		return errors.New("seal/helper: standard input holds no question: this command is not for people")
	}
	defer clear(q.Secret)
	if q.Within > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.Within)
		defer cancel()
		// Whoever asked kills a helper that hangs, unless they have ended themselves.
		defer time.AfterFunc(q.Within+killedWithin, func() { os.Exit(1) }).Stop()
	}
	notices := p.Confine(q.Rules)
	var a answer
	k, err := p.Keeper(q.Kind, q.Parameters, q.Secret)
	switch {
	case err != nil:
	case q.New:
		a.Share, a.Kept, err = k.New(ctx)
	default:
		a.Share, err = k.Share(ctx, q.Kept)
	}
	defer func() { clear(a.Share) }()
	if err != nil {
		a = refusal(err)
	}
	a.Notices = notices
	if err := json.NewEncoder(out).Encode(a); err != nil {
		return fmt.Errorf("seal/helper: answer: %w", err)
	}
	return nil
}

func refusal(err error) answer {
	for code, sentinel := range codes {
		if errors.Is(err, sentinel) {
			return answer{Code: code, Error: err.Error()}
		}
	}
	return answer{Error: err.Error()}
}

// limited keeps the first maxMessage bytes of what a process prints, and lets it print on. Its buffer is no embedded one:
// io.Copy, by which package exec fills it, would call the buffer's ReadFrom, which knows no bound, and not Write.
type limited struct{ kept bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.kept.Write(p[:min(len(p), maxMessage-l.kept.Len())])
	return len(p), nil
}
