package tpm_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"chancery/seal"
	"chancery/seal/tpm"
	"chancery/swtpm"
)

func keeper(emulated *swtpm.TPM, pcrs ...uint) tpm.Keeper {
	return tpm.Keeper{Parameters: tpm.Parameters{Device: emulated.Device(), PCRs: pcrs}}
}

// make1 has the TPM keep a share.
func make1(t *testing.T, k tpm.Keeper) (share, kept []byte) {
	t.Helper()
	share, kept, err := k.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(kept, share) {
		t.Fatal("the share is stored in the clear")
	}
	return share, kept
}

func opens(t *testing.T, k tpm.Keeper, share, kept []byte) {
	t.Helper()
	if again, err := k.Share(t.Context(), kept); err != nil || !bytes.Equal(again, share) {
		t.Errorf("gave %d bytes, %v", len(again), err)
	}
}

func extend(t *testing.T, emulated *swtpm.TPM, pcr uint) {
	t.Helper()
	emulated.Use(func(t transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
		}.Execute(t)
		return err
	})
}

func TestATPMKeepsAShare(t *testing.T) {
	emulated := swtpm.Start(t)
	k := keeper(emulated)
	share, kept := make1(t, k)
	for range 20 {
		opens(t, k, share, kept)
	}
	if objects, sessions := emulated.Handles(); objects != 0 || sessions != 0 {
		t.Errorf("%d objects and %d sessions are left", objects, sessions)
	}
	extend(t, emulated, 7)
	emulated.Restart()
	opens(t, k, share, kept)
}

func TestPCRsShutTheSeal(t *testing.T) {
	emulated := swtpm.Start(t)
	k := keeper(emulated, 7, 11)
	extend(t, emulated, 11)
	share, kept := make1(t, k)
	extend(t, emulated, 8)
	opens(t, k, share, kept)
	extend(t, emulated, 7)
	if _, err := k.Share(t.Context(), kept); !errors.Is(err, seal.ErrChanged) {
		t.Errorf("after a PCR changed: %v", err)
	}
	if _, err := keeper(emulated).Share(t.Context(), kept); err == nil {
		t.Error("it opens without its PCRs")
	}
	if _, err := keeper(emulated, 11).Share(t.Context(), kept); !errors.Is(err, seal.ErrChanged) {
		t.Errorf("with one of its PCRs: %v", err)
	}
	if objects, sessions := emulated.Handles(); objects != 0 || sessions != 0 {
		t.Errorf("%d objects and %d sessions are left", objects, sessions)
	}
	emulated.Restart()
	extend(t, emulated, 11)
	opens(t, k, share, kept)
}

func TestOtherTPMsAndBytesAreForeign(t *testing.T) {
	emulated, other := swtpm.Start(t), swtpm.Start(t)
	k := keeper(emulated)
	_, kept := make1(t, k)
	if _, err := keeper(other).Share(t.Context(), kept); !errors.Is(err, seal.ErrForeign) {
		t.Errorf("another TPM: %v", err)
	}
	for _, field := range []string{"primary", "public", "private"} {
		var object map[string][]byte
		if err := json.Unmarshal(kept, &object); err != nil {
			t.Fatal(err)
		}
		object[field][len(object[field])-1] ^= 1
		altered, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Share(t.Context(), altered); !errors.Is(err, seal.ErrForeign) {
			t.Errorf("%s altered: %v", field, err)
		}
	}
	for _, junk := range []string{"", "{}", "null", `{"primary":"AA=="}`} {
		if _, err := k.Share(t.Context(), []byte(junk)); !errors.Is(err, seal.ErrForeign) {
			t.Errorf("%q: %v", junk, err)
		}
	}
}

// provision puts the storage primary key where others find it.
func provision(emulated *swtpm.TPM) {
	emulated.Use(func(tpm transport.TPM) error {
		made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: 0x81000001,
		}.Execute(tpm)
		if err != nil {
			return err
		}
		_, err = tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(tpm)
		return err
	})
}

// setOwner sets a password, without which nobody makes primary keys any more.
func setOwner(emulated *swtpm.TPM) {
	emulated.Use(func(tpm transport.TPM) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: tpm2.TPMRHOwner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("the owner's password")}}.Execute(tpm)
		return err
	})
}

// TestAnOwnersPasswordIsNotNeeded: the owner has put the storage primary key where others find it, and then set a password.
func TestAnOwnersPasswordIsNotNeeded(t *testing.T) {
	emulated := swtpm.Start(t)
	k := keeper(emulated, 7)
	share, kept := make1(t, k)
	provision(emulated)
	setOwner(emulated)
	opens(t, k, share, kept)
	share, kept = make1(t, k)
	opens(t, k, share, kept)
	if objects, sessions := emulated.Handles(); objects != 0 || sessions != 0 {
		t.Errorf("%d objects and %d sessions are left", objects, sessions)
	}

	bare := swtpm.Start(t)
	setOwner(bare)
	if _, _, err := keeper(bare).New(t.Context()); !errors.Is(err, seal.ErrAbsent) {
		t.Errorf("no primary key to be had: %v", err)
	}
}

// TestASwappedPrimaryKeyIsForeign: whoever sits between offers a storage primary key of their own under the right one's name, to
// read what is encrypted to it.
func TestASwappedPrimaryKeyIsForeign(t *testing.T) {
	const startAuthSession = uint32(tpm2.TPMCCStartAuthSession)
	points := map[tpm2.TPMCC]int{ // where the public point begins in the answer: after header and sizes, and a handle
		tpm2.TPMCCCreatePrimary: 44,
		tpm2.TPMCCReadPublic:    36,
	}
	for name, prepare := range map[string]func(*swtpm.TPM){
		"made anew":  func(*swtpm.TPM) {},
		"persistent": func(emulated *swtpm.TPM) { provision(emulated); setOwner(emulated) },
	} {
		t.Run(name, func(t *testing.T) {
			emulated := swtpm.Start(t)
			prepare(emulated)
			share, kept := make1(t, keeper(emulated))
			between := swtpm.Interpose(t, emulated)
			k := tpm.Keeper{Parameters: tpm.Parameters{Device: between.Device}}
			opens(t, k, share, kept)

			own, err := ecdh.P256().GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			point := own.PublicKey().Bytes() // 4 ‖ X ‖ Y
			swapped, sessions := false, 0
			swap := func(command, answer []byte) []byte {
				const success = 0
				for code, at := range points {
					if swtpm.IsCommand(command, uint32(code)) && binary.BigEndian.Uint32(answer[6:]) == success {
						copy(answer[at:], point[1:33])
						copy(answer[at+34:], point[33:])
						swapped = true
					}
				}
				if swtpm.IsCommand(command, startAuthSession) {
					sessions++
				}
				return answer
			}
			between.With(swap, func() {
				if _, err := k.Share(t.Context(), kept); !errors.Is(err, seal.ErrForeign) {
					t.Errorf("another key under the right name: %v", err)
				}
			})
			if !swapped || sessions != 0 {
				t.Errorf("swapped %t, and %d sessions were salted to the other key", swapped, sessions)
			}
			opens(t, k, share, kept)
		})
	}
}

func TestADeadOrSilentTPMIsAbsent(t *testing.T) {
	emulated := swtpm.Start(t)
	k := keeper(emulated)
	_, kept := make1(t, k)
	emulated.Stop()
	if _, err := k.Share(t.Context(), kept); !errors.Is(err, seal.ErrAbsent) {
		t.Errorf("dead: %v", err)
	}
	directory, err := os.MkdirTemp("", "seal") // the path of a Unix socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(directory)
	path := filepath.Join(directory, "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	silent := tpm.Keeper{Parameters: tpm.Parameters{Device: "unix:" + path}}
	if _, err := silent.Share(ctx, kept); !errors.Is(err, seal.ErrAbsent) {
		t.Errorf("silent: %v", err)
	}
	for _, p := range []tpm.Parameters{
		{}, {Device: "tpm0"}, {Device: "unix:relative"}, {Device: "/dev/null", PCRs: []uint{24}}, {Device: "/dev/null", PCRs: []uint{7, 7}},
	} {
		if err := p.Check(); !errors.Is(err, seal.ErrUnsuitable) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, path := range []string{filepath.Join(directory, "none"), directory, "/dev/null"} {
		if _, err := (tpm.Keeper{Parameters: tpm.Parameters{Device: path}}).Share(t.Context(), kept); !errors.Is(err, seal.ErrAbsent) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
