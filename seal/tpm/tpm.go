// Package tpm keeps a seal's share in a sealed object of a TPM 2.0 (TPM 2.0 library, part 1, section 23.6), under the
// owner hierarchy's storage primary key.
//
// The object opens in the TPM that made it and nowhere else, and, where PCRs were chosen, only while they have the values
// that they had then. It has no password: whoever may use this TPM, and has the database, opens it.
package tpm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"chancery/seal"
)

// DefaultDevice is the kernel's TPM with its resource manager.
const DefaultDevice = "/dev/tpmrm0"

// MaxPCR is the highest PCR that a PC has.
const MaxPCR = 23

const (
	socketPrefix = "unix:"
	nonceSize    = 16 // bytes, of sessions
	keyBits      = 128
)

// Parameters say which TPM.
type Parameters struct {
	Device string `json:"device"`         // a device's path, or "unix:" and the socket of an emulated TPM
	PCRs   []uint `json:"pcrs,omitempty"` // of the SHA-256 bank, ascending; none: the object opens whatever was started
}

// String says for people which TPM it is.
func (p Parameters) String() string {
	if len(p.PCRs) == 0 {
		return p.Device
	}
	return fmt.Sprintf("%s, PCRs %s", p.Device, strings.Trim(fmt.Sprint(p.PCRs), "[]"))
}

// Check tells what is wrong with the parameters: seal.ErrUnsuitable, or nil.
func (p Parameters) Check() error {
	if path := strings.TrimPrefix(p.Device, socketPrefix); !strings.HasPrefix(path, "/") {
		return fmt.Errorf("%w: TPM %q is not an absolute path", seal.ErrUnsuitable, p.Device)
	}
	for i, pcr := range p.PCRs {
		if pcr > MaxPCR || i > 0 && pcr <= p.PCRs[i-1] {
			return fmt.Errorf("%w: PCRs are 0 to %d, each once", seal.ErrUnsuitable, MaxPCR)
		}
	}
	return nil
}

// Keeper keeps shares in a TPM.
type Keeper struct{ Parameters }

var _ seal.Keeper = Keeper{}

// kept is the stored form of a sealed object.
type kept struct {
	Primary []byte `json:"primary"` // name of the storage primary key, a digest of its public area: tells one TPM from another
	Public  []byte `json:"public"`  // TPM2B_PUBLIC
	Private []byte `json:"private"` // TPM2B_PRIVATE, encrypted by the TPM
}

// New seals random bytes.
func (k Keeper) New(ctx context.Context) (share, stored []byte, err error) {
	share = make([]byte, seal.ShareSize)
	rand.Read(share)
	err = k.with(ctx, func(s *session) error {
		made, err := s.create(share, k.PCRs)
		if err != nil {
			return err
		}
		stored, err = json.Marshal(made)
		return err
	})
	if err != nil {
		clear(share)
		return nil, nil, err
	}
	return share, stored, nil
}

// Share unseals them.
func (k Keeper) Share(ctx context.Context, stored []byte) (share []byte, err error) {
	var object kept
	if err := json.Unmarshal(stored, &object); err != nil {
		return nil, seal.ErrForeign
	}
	err = k.with(ctx, func(s *session) error {
		share, err = s.unseal(object, k.PCRs)
		return err
	})
	return share, err
}

// session is a connection to the TPM with its storage primary key at hand.
type session struct {
	tpm     transport.TPM
	primary tpm2.NamedHandle
	public  *tpm2.TPMTPublic
}

// with connects, has the primary key at hand, and gives both back.
func (k Keeper) with(ctx context.Context, act func(*session) error) (err error) {
	if err := k.Check(); err != nil {
		return err
	}
	tpm, err := open(ctx, k.Device)
	if err != nil {
		return fmt.Errorf("%w: TPM %s: %w", seal.ErrAbsent, k.Device, err)
	}
	defer tpm.Close()
	err = use(tpm, act)
	if err != nil && !known(err) {
		err = fmt.Errorf("%w: TPM %s: %w", seal.ErrAbsent, k.Device, err)
	}
	return err
}

// provisioned is where the storage primary key is kept in TPMs that have been given to an owner (TCG TPM v2.0
// Provisioning Guidance, section 7.8).
const provisioned tpm2.TPMHandle = 0x81000001

func use(tpm transport.TPM, act func(*session) error) (err error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
	if errors.Is(err, tpm2.TPMRCBadAuth) {
		return useProvisioned(tpm, act)
	}
	if err != nil {
		return fmt.Errorf("storage primary key: %w", err)
	}
	defer func() {
		_, flushed := tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(tpm)
		err = errors.Join(err, flushed)
	}()
	s, err := newSession(tpm, made.ObjectHandle, made.OutPublic)
	if err != nil {
		return err
	}
	return act(s)
}

// useProvisioned is for a TPM whose owner has set a password, so that nobody else makes primary keys.
func useProvisioned(tpm transport.TPM, act func(*session) error) error {
	there, err := tpm2.ReadPublic{ObjectHandle: provisioned}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("the TPM's owner has set a password, and there is no storage primary key at %#x: %w", uint32(provisioned), err)
	}
	s, err := newSession(tpm, provisioned, there.OutPublic)
	if err != nil {
		return err
	}
	return act(s)
}

// newSession computes the primary key's name itself. What is kept with a share is compared with the name, and sessions are
// salted to the public area: by a name from the wire, whoever sits on the bus could have the two belong to different keys.
func newSession(tpm transport.TPM, handle tpm2.TPMHandle, out tpm2.TPM2BPublic) (*session, error) {
	public, err := out.Contents()
	if err != nil {
		return nil, fmt.Errorf("storage primary key: %w", err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, fmt.Errorf("storage primary key: %w", err)
	}
	return &session{tpm, tpm2.NamedHandle{Handle: handle, Name: *name}, public}, nil
}

func known(err error) bool {
	return errors.Is(err, seal.ErrForeign) || errors.Is(err, seal.ErrChanged) || errors.Is(err, seal.ErrUnsuitable)
}

// open connects with the context's deadline. A device has none of its own: who calls this in a process of its own ends that.
func open(ctx context.Context, device string) (transport.TPMCloser, error) {
	path, socket := strings.CutPrefix(device, socketPrefix)
	if !socket {
		file, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			return nil, err
		}
		if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
			return nil, errors.Join(errors.New("it is not a device"), err, file.Close())
		}
		return transport.FromReadWriteCloser(file), nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	} else if err := conn.SetDeadline(time.Now().Add(seal.DefaultDeadline)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return transport.FromReadWriteCloser(conn), nil
}

// secured are the options of sessions that are salted to the primary key and encrypt their first parameter, so that nobody on the bus to the
// TPM reads the share (part 1, sections 19.6.13 and 21). That holds for whoever was not there when the share was made: New trusts the key that
// it sees for the first time.
func (s *session) secured() []tpm2.AuthOption {
	return []tpm2.AuthOption{tpm2.Salted(s.primary.Handle, *s.public), tpm2.AESEncryption(keyBits, tpm2.EncryptInOut)}
}

func (s *session) parent() tpm2.AuthHandle {
	return tpm2.AuthHandle{
		Handle: s.primary.Handle, Name: s.primary.Name,
		Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, s.secured()...),
	}
}

// create makes the sealed object. It is exempt from the TPM's protection against guessing, since it has no
// password, and would otherwise stay shut while somebody guesses another's.
func (s *session) create(share []byte, pcrs []uint) (*kept, error) {
	attributes := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, UserWithAuth: len(pcrs) == 0}
	policy, err := s.policy(pcrs)
	if err != nil {
		return nil, err
	}
	made, err := tpm2.Create{
		ParentHandle: s.parent(),
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: share})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
			AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		}),
	}.Execute(s.tpm)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return &kept{Primary: s.primary.Name.Buffer, Public: tpm2.Marshal(made.OutPublic), Private: tpm2.Marshal(made.OutPrivate)}, nil
}

// policy is the digest that the PCRs' present values give (part 3, section 23.7); none without PCRs.
func (s *session) policy(pcrs []uint) (digest []byte, err error) {
	if len(pcrs) == 0 {
		return nil, nil
	}
	trial, end, err := tpm2.PolicySession(s.tpm, tpm2.TPMAlgSHA256, nonceSize, tpm2.Trial())
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	defer func() { err = errors.Join(err, end()) }()
	if _, err := (tpm2.PolicyPCR{PolicySession: trial.Handle(), Pcrs: selection(pcrs)}).Execute(s.tpm); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	answer, err := tpm2.PolicyGetDigest{PolicySession: trial.Handle()}.Execute(s.tpm)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return answer.PolicyDigest.Buffer, nil
}

func selection(pcrs []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}}
}

func (s *session) unseal(object kept, pcrs []uint) (share []byte, err error) {
	if !slices.Equal(object.Primary, s.primary.Name.Buffer) {
		return nil, fmt.Errorf("%w: another TPM answers, or this one was cleared", seal.ErrForeign)
	}
	public, pubErr := tpm2.Unmarshal[tpm2.TPM2BPublic](object.Public)
	private, privErr := tpm2.Unmarshal[tpm2.TPM2BPrivate](object.Private)
	if errors.Join(pubErr, privErr) != nil {
		return nil, seal.ErrForeign
	}
	loaded, err := tpm2.Load{ParentHandle: s.parent(), InPrivate: *private, InPublic: *public}.Execute(s.tpm)
	if err != nil {
		return nil, loading(err)
	}
	defer func() {
		_, flushed := tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(s.tpm)
		err = errors.Join(err, flushed)
	}()
	answer, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: s.authorisation(pcrs)}}.Execute(s.tpm)
	if errors.Is(err, tpm2.TPMRCPolicyFail) || errors.Is(err, tpm2.TPMRCPCRChanged) {
		return nil, seal.ErrChanged
	}
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return answer.OutData.Buffer, nil
}

// loading tells altered bytes from a TPM that has no room or does not answer.
func loading(err error) error {
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCIntegrity, tpm2.TPMRCSize, tpm2.TPMRCBinding, tpm2.TPMRCAttributes, tpm2.TPMRCInsufficient, tpm2.TPMRCValue} {
		if errors.Is(err, code) {
			return seal.ErrForeign
		}
	}
	return fmt.Errorf("load: %w", err)
}

// authorisation encrypts what the TPM answers. With PCRs it proves their values.
func (s *session) authorisation(pcrs []uint) tpm2.Session {
	options := []tpm2.AuthOption{tpm2.Salted(s.primary.Handle, *s.public), tpm2.AESEncryption(keyBits, tpm2.EncryptOut)}
	if len(pcrs) == 0 {
		return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, options...)
	}
	prove := func(tpm transport.TPM, handle tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicyPCR{PolicySession: handle, Pcrs: selection(pcrs)}.Execute(tpm)
		return err
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, prove, options...)
}
