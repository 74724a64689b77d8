package faulty_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"chancery/internal/confine"
	"chancery/softhsm"
	"chancery/softhsm/faulty"
)

// fixture is a faulty module with a session that is logged in, and a key.
type fixture struct {
	faulty.Module
	api     *p11.Ctx
	slot    uint
	session p11.SessionHandle
	key     p11.ObjectHandle
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	hsm := softhsm.ForTest(t)
	f := &fixture{Module: faulty.Build(t)}
	f.api = p11.New(f.Path)
	if f.api == nil {
		t.Fatal("the module cannot be loaded")
	}
	t.Cleanup(f.api.Destroy)
	must(t, f.api.Initialize())
	t.Cleanup(func() { f.api.Finalize() })
	slots, err := f.api.GetSlotList(true)
	must(t, err)
	f.slot = slots[0]
	f.session, err = f.api.OpenSession(f.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	must(t, err)
	must(t, f.api.Login(f.session, p11.CKU_USER, string(hsm.PIN)))
	p256 := []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}
	_, f.key, err = f.api.GenerateKeyPair(f.session, []*p11.Mechanism{p11.NewMechanism(p11.CKM_EC_KEY_PAIR_GEN, nil)},
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_EC_PARAMS, p256)}, []*p11.Attribute{p11.NewAttribute(p11.CKA_SIGN, true)})
	must(t, err)
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sign signs a fixed digest with ECDSA.
func (f *fixture) sign() ([]byte, error) {
	digest := sha256.Sum256([]byte("x"))
	if err := f.api.SignInit(f.session, []*p11.Mechanism{p11.NewMechanism(p11.CKM_ECDSA, nil)}, f.key); err != nil {
		return nil, err
	}
	return f.api.Sign(f.session, digest[:])
}

func TestReturn(t *testing.T) {
	f := newFixture(t)
	f.Set(t, "return CKR_DEVICE_ERROR C_Sign 2; return CKR_TOKEN_NOT_PRESENT C_GetTokenInfo,C_OpenSession")
	for i, want := range []error{p11.Error(p11.CKR_DEVICE_ERROR), p11.Error(p11.CKR_DEVICE_ERROR), nil} {
		if _, err := f.sign(); !errors.Is(err, want) {
			t.Errorf("signature %d: %v, want %v", i, err, want)
		}
	}
	for range 3 {
		if _, err := f.api.GetTokenInfo(f.slot); err != p11.Error(p11.CKR_TOKEN_NOT_PRESENT) {
			t.Errorf("token info: %v", err)
		}
	}
	f.Clear(t)
	if _, err := f.api.GetTokenInfo(f.slot); err != nil {
		t.Errorf("token info when all is well again: %v", err)
	}
	if n := f.Calls(t, "C_Sign"); n != 3 {
		t.Errorf("%d signatures counted, not 3", n)
	}
}

func TestCorrupt(t *testing.T) {
	f := newFixture(t)
	f.Set(t, "corrupt 1")
	digest := sha256.Sum256([]byte("x"))
	verified := func() error {
		signature, err := f.sign()
		must(t, err)
		must(t, f.api.VerifyInit(f.session, []*p11.Mechanism{p11.NewMechanism(p11.CKM_ECDSA, nil)}, f.public(t)))
		return f.api.Verify(f.session, digest[:], signature)
	}
	if err := verified(); err != p11.Error(p11.CKR_SIGNATURE_INVALID) {
		t.Errorf("a corrupted signature: %v", err)
	}
	if err := verified(); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

func (f *fixture) public(t *testing.T) p11.ObjectHandle {
	t.Helper()
	must(t, f.api.FindObjectsInit(f.session, []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY)}))
	found, _, err := f.api.FindObjects(f.session, 2)
	must(t, err)
	must(t, f.api.FindObjectsFinal(f.session))
	if len(found) != 1 {
		t.Fatalf("%d public keys", len(found))
	}
	return found[0]
}

func TestDelayAndHang(t *testing.T) {
	f := newFixture(t)
	f.Set(t, "delay 50ms C_Sign 1")
	start := time.Now()
	_, err := f.sign()
	must(t, err)
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("took %v", took)
	}
	f.Set(t, "hang C_Sign")
	done := make(chan error)
	go func() {
		_, err := f.sign()
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("did not hang: %v", err)
	case <-time.After(100 * time.Millisecond):
		f.Clear(t)
		must(t, <-done)
	}
}

func TestSessions(t *testing.T) {
	f := newFixture(t)
	count := func() (n int) {
		var handles []p11.SessionHandle
		for range 32 {
			handle, err := f.api.OpenSession(f.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
			if err == p11.Error(p11.CKR_SESSION_COUNT) {
				break
			}
			must(t, err)
			handles = append(handles, handle)
		}
		for _, handle := range handles {
			must(t, f.api.CloseSession(handle))
		}
		return len(handles) + 1
	}
	for range 2 {
		f.Set(t, "sessions 16")
		if n := count(); n != 16 {
			t.Errorf("%d sessions could be opened", n)
		}
	}
	if info, err := f.api.GetTokenInfo(f.slot); err != nil || info.MaxSessionCount == 16 {
		t.Errorf("%d sessions stated, %v", info.MaxSessionCount, err)
	}
	f.Set(t, "sessions 5 stated")
	if info, err := f.api.GetTokenInfo(f.slot); err != nil || info.MaxSessionCount != 5 || info.MaxRwSessionCount != 5 {
		t.Errorf("%d sessions stated, %v", info.MaxSessionCount, err)
	}
	if n := count(); n != 5 {
		t.Errorf("%d sessions could be opened", n)
	}
}

func TestDuplicate(t *testing.T) {
	f := newFixture(t)
	f.Set(t, "duplicate")
	handles := make(chan p11.SessionHandle, 2)
	for range 2 {
		go func() {
			handle, _ := f.api.OpenSession(f.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
			handles <- handle
		}()
	}
	if a, b := <-handles, <-handles; a != b {
		t.Errorf("handles %d and %d", a, b)
	}
	a, err := f.api.OpenSession(f.slot, p11.CKF_SERIAL_SESSION)
	must(t, err)
	b, err := f.api.OpenSession(f.slot, p11.CKF_SERIAL_SESSION)
	must(t, err)
	if a == b {
		t.Error("one after the other got the same handle")
	}
}

// TestCrash has a process of its own crash, once.
func TestCrash(t *testing.T) {
	const environment = "FAULTY_TEST_CRASH"
	if path := os.Getenv(environment); path != "" {
		api := p11.New(path)
		must(t, api.Initialize())
		_, err := api.GetSlotList(true)
		must(t, err)
		return
	}
	hsm := softhsm.ForTest(t)
	m := faulty.Build(t)
	m.Set(t, "crash C_GetSlotList 1")
	run := func() ([]byte, error) {
		command := exec.Command(os.Args[0], "-test.run=^TestCrash$")
		command.Env = append(append(os.Environ(), hsm.Env()...), environment+"="+m.Path)
		return command.CombinedOutput()
	}
	if out, err := run(); err == nil || !bytes.Contains(out, []byte("SIGABRT")) {
		t.Errorf("did not crash: %v\n%s", err, out)
	}
	if out, err := run(); err != nil {
		t.Errorf("crashed again: %v\n%s", err, out)
	}
}

// TestConfined has a process that can write nothing count by itself.
func TestConfined(t *testing.T) {
	const environment = "FAULTY_TEST_CONFINED"
	if path := os.Getenv(environment); path != "" {
		confine.Apply(confine.Rules{})
		api := p11.New(path)
		if api == nil {
			t.Fatal("the module cannot be loaded")
		}
		must(t, api.Initialize())
		for _, want := range []error{p11.Error(p11.CKR_DEVICE_ERROR), p11.Error(p11.CKR_DEVICE_ERROR), nil} {
			if _, err := api.GetSlotList(true); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		return
	}
	hsm := softhsm.ForTest(t)
	m := faulty.Build(t)
	m.Set(t, "return CKR_DEVICE_ERROR C_GetSlotList 2")
	command := exec.Command(os.Args[0], "-test.run=^TestConfined$")
	command.Env = append(append(os.Environ(), hsm.Env()...), environment+"="+m.Path)
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
