package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"chancery/e2e/lab"
	"chancery/softhsm"
	"chancery/softhsm/faulty"
	"chancery/tunnel/wire"
)

// fault is something that a token does to its users.
type fault struct {
	name     string
	commands string        // for faulty.Module.Set
	lasts    time.Duration // before the token is well again
	replaced int           // processes of the token that have to be replaced before
	opening  bool          // it shows only when the token is opened
	unblock  bool          // an operator has to let the PIN be sent again
	codes    []wire.Code   // that callers may be told, beside troubles
	answer   string        // what the driver, the token's process and the daemon do, for docs/faults.md
}

// troubles are the codes that a token's fault may end a request with.
var troubles = []wire.Code{
	wire.CodeTokenUnavailable, wire.CodeTokenAbsent, wire.CodeTokenBusy, wire.CodeBusy, wire.CodeDeadlineExceeded,
}

const (
	faultsCallTimeout = 2 * time.Second // tokens.call_timeout
	faultsBusy        = 8 * time.Second // for how long clients ask again
	faultsClients     = 8
	faultsCallers     = 3 // of each client: more in flight than a token of 16 sessions can take
)

// lasting is for how long a token has a fault that is not counted in calls.
const lasting = 2 * time.Second

var faults = []fault{
	{name: "one `C_Sign` hangs", commands: "hang C_Sign 1", replaced: 1,
		answer: "the call outlasts `tokens.call_timeout`, so the process ends itself and another is started; clients unlock again"},
	{name: "every `C_Sign` hangs", commands: "hang C_Sign", replaced: 2,
		answer: "the same with each process, the later ones after growing pauses"},
	{name: "a crash, and then `C_Login` hangs twice", commands: "crash C_Sign 1; hang C_Login 2", replaced: 3,
		answer: "the same; the PIN on its way is marked before it is sent, and a third try in a row is the last"},
	{name: "a crash, and then `C_Login` hangs each time", commands: "crash C_Sign 1; hang C_Login", replaced: 4, unblock: true,
		codes:  []wire.Code{wire.CodeTokenPINRejected},
		answer: "three tries without an answer are all that a PIN gets: `token_pin_rejected` until an operator says `token unblock`"},
	{name: "one crash (`abort`) in `C_Sign`", commands: "crash C_Sign 1", replaced: 1,
		answer: "the daemon sees the process end and starts another at once"},
	{name: "a crash with each `C_Sign`", commands: "crash C_Sign", replaced: 3,
		answer: "the same, with growing pauses"},
	{name: "`CKR_DEVICE_ERROR`, twice", commands: "return CKR_DEVICE_ERROR C_Sign 2", lasts: time.Second,
		answer: "the driver drops the session and repeats on another one"},
	{name: "`CKR_DEVICE_ERROR` always", commands: "return CKR_DEVICE_ERROR C_Sign", lasts: lasting,
		answer: "after three tries the process is replaced"},
	{name: "`CKR_SESSION_HANDLE_INVALID`, twice", commands: "return CKR_SESSION_HANDLE_INVALID C_SignInit 2", lasts: time.Second,
		answer: "the driver drops the session and repeats on another one"},
	{name: "`CKR_SESSION_HANDLE_INVALID` always", commands: "return CKR_SESSION_HANDLE_INVALID C_SignInit", lasts: lasting,
		answer: "after three tries the process is replaced"},
	{name: "`CKR_USER_NOT_LOGGED_IN`, once", commands: "return CKR_USER_NOT_LOGGED_IN C_SignInit 1", lasts: time.Second,
		answer: "the token's process logs in again with the PIN that it keeps, and repeats"},
	{name: "`CKR_USER_NOT_LOGGED_IN` always", commands: "return CKR_USER_NOT_LOGGED_IN C_SignInit", lasts: lasting,
		answer: "when a new login does not help the process is replaced"},
	{name: "`CKR_OBJECT_HANDLE_INVALID`, twice", commands: "return CKR_OBJECT_HANDLE_INVALID C_SignInit 2", lasts: time.Second,
		answer: "the driver looks the key up anew and repeats"},
	{name: "`CKR_OBJECT_HANDLE_INVALID` always", commands: "return CKR_OBJECT_HANDLE_INVALID C_SignInit", lasts: lasting,
		answer: "after three tries the process is replaced"},
	{name: "`CKR_TOKEN_NOT_PRESENT` for a while", commands: "return CKR_TOKEN_NOT_PRESENT C_GetSlotInfo,C_GetTokenInfo,C_OpenSession,C_SignInit", lasts: lasting,
		answer: "the daemon looks for the token after growing pauses and says `token_absent` until it is back, which the client does not wait for"},
	{name: "`CKR_HOST_MEMORY`, twice", commands: "return CKR_HOST_MEMORY C_Sign 2", lasts: time.Second,
		answer: "the driver repeats on the same session"},
	{name: "`CKR_HOST_MEMORY` always", commands: "return CKR_HOST_MEMORY C_Sign", lasts: lasting,
		answer: "after three tries the process is replaced"},
	{name: "16 sessions, and the token says so", commands: "sessions 16 stated", opening: true, lasts: lasting,
		answer: "the driver opens no more; requests wait their turn in the token's queue"},
	{name: "16 sessions, and the token does not say so", commands: "sessions 16", opening: true, lasts: lasting,
		answer: "the driver opens as many as it gets; requests wait their turn in the token's queue"},
	{name: "700 ms for each signature", commands: "delay 700ms C_Sign", lasts: lasting,
		answer: "requests wait their turn in the token's queue"},
	{name: "one corrupted signature", commands: "corrupt 1", lasts: time.Second,
		answer: "the token's process verifies each signature, throws the wrong one away and has it made again"},
	{name: "ten corrupted signatures", commands: "corrupt 10", lasts: time.Second, codes: []wire.Code{wire.CodeKeyMismatch},
		answer: "the same; a request that meets two of them has the process replaced, and is repeated by its client"},
	{name: "every signature is corrupted", commands: "corrupt", lasts: lasting,
		codes:  []wire.Code{wire.CodeKeyMismatch},
		answer: "after two wrong ones of a request the process is replaced; the next one finds that the halves of the key do not fit: `key_mismatch`. No wrong signature leaves the process, and none is recorded"},
}

// faultyDriver keeps the keys of "vault" in a SoftHSM token behind a module that misbehaves.
func faultyDriver(t *testing.T, m faulty.Module, pin string) lab.Driver {
	t.Helper()
	t.Setenv("SOFTHSM2_CONF", "") // softhsm sets it; this restores it after the test
	return lab.Driver{Name: "faulty", Add: func(l *lab.Lab) {
		token, err := softhsm.New(l.TempDir(), "chancery lab", []byte(pin))
		if err != nil {
			l.Fatal(err)
		}
		l.HSM = token
		l.Environment = append(l.Environment, token.Env()...)
		l.Write("pin", pin)
		l.Write("server.toml", l.Read("server.toml")+fmt.Sprintf("[tokens]\nmodules = [%q]\nwritable = [%q, %q]\ncall_timeout = %q\n",
			m.Path, m.Control, l.HSMDirectory(), faultsCallTimeout))
		l.Operator("token", "add", "vault", "--driver", "pkcs11", "--module", m.Path, "--serial", token.Serial, "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
	}}
}

// TestTokenFaults has a token misbehave in every way while eight clients sign with it and another one signs with a token that is well.
// Each request ends in a valid signature or in an error with a code, the token comes back by itself, and the other one
// notices nothing. With CHANCERY_WRITE_FAULTS set, what was measured is written to docs/faults.md.
func TestTokenFaults(t *testing.T) {
	b := newBroken(t)
	for _, f := range faults {
		t.Run(strings.ReplaceAll(f.name, "`", ""), func(t *testing.T) { b.suffer(t, f) })
		if t.Failed() {
			return
		}
	}
	sick, well := b.sick.disperse(), b.well.disperse()
	checkCodes(t, well)
	b.scene.checkRecord(t, append(sick, well...))
	t.Logf("the faulty token: %s; the other one: %s", tally(sick), tally(well))
	if os.Getenv("CHANCERY_WRITE_FAULTS") != "" {
		writeFaults(t, b.measured)
	}
}

// broken is a lab with a token that misbehaves and one that does not.
type broken struct {
	scene      *scene
	module     faulty.Module
	sick, well *crowd // of users of the one and of the other
	measured   []measurement
}

// measurement is what a fault did.
type measurement struct {
	fault
	silence       time.Duration // the longest time in which no caller got a signature
	after         time.Duration // from the token's recovery to the next signature
	slowest       time.Duration // request
	failed, asked int
	openings      int // of the token, after the fault began
}

func newBroken(t *testing.T) *broken {
	t.Helper()
	b := &broken{module: faulty.Build(t)}
	s := newLab(t, faultyDriver(t, b.module, lab.TokenPIN))
	b.scene = s
	s.Operator("token", "add", "desk", "--driver", "soft", "--create", "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
	s.CreateKey("release", "p256")
	s.CreateKey("nightly", "p256", "--token", "desk")
	s.makeUnlocksCheap("release")
	s.Serve()
	b.well = s.gather(t, crowdConfig{Key: "nightly", Clients: 1, Callers: 2, Pause: 50 * time.Millisecond, Busy: faultsBusy})
	b.sick = s.gather(t, crowdConfig{Key: "release", Clients: faultsClients, Callers: faultsCallers, Pause: 40 * time.Millisecond, Busy: faultsBusy})
	return b
}

// openings tells how often the daemon has opened the faulty token.
func (b *broken) openings() int {
	return strings.Count(b.scene.Server.Log.String(), `msg="the token is open" token=vault`)
}

// suffer has the token misbehave for a while, and measures what its users notice until all of them have signatures again.
func (b *broken) suffer(t *testing.T, f fault) {
	b.begin(t)
	opens := b.openings()
	began := time.Now()
	b.module.Set(t, f.commands)
	if f.opening {
		b.scene.Operator("token", "reload", "vault")
	}
	time.Sleep(f.lasts)
	eventually(t, func() bool { return b.openings() >= opens+f.replaced }, "the token's process is not replaced")
	if f.unblock {
		eventually(t, func() bool { return b.sick.wasTold(began, wire.CodeTokenPINRejected) }, "nobody is told that the PIN is not sent")
	}
	b.module.Clear(t)
	if f.unblock {
		b.scene.Operator("token", "unblock", "vault")
	}
	cured := time.Now()
	b.recover(t, cured)
	during := b.sick.since(began)
	checkCodes(t, during, append(f.codes, troubles...)...)
	if well := b.well.since(began); len(well) == 0 {
		t.Error("nobody signed with the other token meanwhile")
	} else {
		checkCodes(t, well)
	}
	m := measure(during, began, cured)
	m.fault, m.openings = f, b.openings()-opens
	b.measured = append(b.measured, m)
	t.Logf("no signature for %v, the next one %v after the recovery, the slowest request %v; %s; opened %d times",
		m.silence, m.after, m.slowest, tally(during), m.openings)
}

// begin opens the token anew, so that no fault inherits the pauses after the one before.
func (b *broken) begin(t *testing.T) {
	t.Helper()
	opens := b.openings()
	b.scene.Operator("token", "reload", "vault")
	eventually(t, func() bool { return b.openings() > opens }, "the token is not opened anew")
	b.recover(t, time.Now())
}

// recover waits until every caller has a signature that was asked for after a moment.
func (b *broken) recover(t *testing.T, moment time.Time) {
	t.Helper()
	for deadline := time.Now().Add(3 * lab.Patience); !b.sick.allSigned(moment, faultsClients*faultsCallers); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the token is well, and since then: %s", tally(b.sick.since(moment)))
		}
	}
}

// measure looks at requests in the order in which they ended.
func measure(all []asked, began, cured time.Time) (m measurement) {
	last := began
	for _, a := range all {
		m.asked++
		m.slowest = max(m.slowest, a.ended.Sub(a.begun))
		if a.code != "" {
			m.failed++
			continue
		}
		m.silence = max(m.silence, a.ended.Sub(last))
		if last.Before(cured) && a.ended.After(cured) {
			m.after = a.ended.Sub(cured)
		}
		last = a.ended
	}
	return m
}
