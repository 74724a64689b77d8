package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/token"
)

// key is one key of an open token. The token's turn guards all but info.
type key struct {
	token *Token
	info  token.KeyInfo

	file       *keyFile
	generation string // that file belongs to
	gone       bool   // destroyed

	// Since the login, the TPM took the token's authorisation for the file, or rejected it. Each rejection counts against
	// the lockout, so that a file of unknown standing is not tried with the last try, and a refused one not at all.
	accepted, refused bool
}

var _ token.Key = (*key)(nil)

func (k *key) ID() []byte                 { return bytes.Clone(k.info.ID) }
func (k *key) Algorithm() token.Algorithm { return k.info.Algorithm }
func (k *key) Public() crypto.PublicKey   { return k.info.Public }

// Sign has the TPM sign. ECDSA takes digests of any hash, since only their bits
// count; RSA needs a TPM that knows the hash. RSA-PSS needs one whose salt is as
// long as the hash, which is checked on the signature itself, since a TPM does
// not tell: others would reject a longer salt.
func (k *key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	what := fmt.Sprintf("sign with key %x", k.info.ID)
	if err := ctx.Err(); err != nil {
		return nil, k.token.failed(what, err)
	}
	if err := token.CheckDigest(k.info.Algorithm, digest, opts); err != nil {
		return nil, k.token.failed(what, err)
	}
	var signature []byte
	err := k.token.use(ctx, what, func(l *link) (err error) {
		if err := k.ready(l); err != nil {
			return err
		}
		if k.info.Algorithm.RSABits() != 0 {
			signature, err = k.signRSA(l, digest, opts)
		} else {
			signature, err = k.signECDSA(l, digest)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return signature, nil
}

// ready sees to it that the key's file is one that the login's authorisation fits.
func (k *key) ready(l *link) error {
	t := k.token
	switch {
	case k.gone:
		return token.ErrNoKey
	case t.auth == nil:
		return token.ErrLoginRequired
	case k.generation != t.generation:
		again, err := t.open(l, k.info.ID)
		if err != nil {
			return err
		}
		if again != k {
			return fmt.Errorf("another key has its identifier now: %w", token.ErrMismatch)
		}
	}
	if k.refused {
		return errForeign
	}
	return nil
}

// errForeign says that the TPM loads a key and does not take the token's authorisation for it.
var errForeign = fmt.Errorf("its file was wrapped under another PIN, and it is refused until the next login: %w", token.ErrMismatch)

func (k *key) signRSA(l *link, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	offers, err := l.learn()
	if err != nil {
		return nil, err
	}
	hash, scheme := tpmHash(opts.HashFunc()), tpm2.TPMAlgRSASSA
	_, pss := opts.(*rsa.PSSOptions)
	if pss {
		scheme = tpm2.TPMAlgRSAPSS
	}
	if !offers.primitives[hash] || !offers.primitives[scheme] {
		return nil, fmt.Errorf("this TPM has no RSA signatures of that kind with %v: %w", opts.HashFunc(), token.ErrUnsupported)
	}
	if pss && offers.longSalt {
		return nil, errLongSalt
	}
	signature, err := k.ask(l, digest, scheme, hash)
	if err != nil {
		return nil, err
	}
	out, err := k.rsaSignature(signature)
	if err != nil || !pss {
		return out, err
	}
	err = rsa.VerifyPSS(k.info.Public.(*rsa.PublicKey), opts.HashFunc(), digest, out,
		&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: opts.HashFunc()})
	if err != nil {
		offers.longSalt = true
		return nil, errLongSalt
	}
	return out, nil
}

// errLongSalt is about TPMs whose salt fills what the padding leaves, as the
// TPM 2.0 library permits (part 1, annex B.7).
var errLongSalt = fmt.Errorf("this TPM's RSA-PSS salt is not as long as the hash: %w", token.ErrUnsupported)

// rsaSignature brings a signature to the modulus's length.
func (k *key) rsaSignature(signature *tpm2.TPMTSignature) ([]byte, error) {
	var in *tpm2.TPMSSignatureRSA
	var err error
	if signature.SigAlg == tpm2.TPMAlgRSAPSS {
		in, err = signature.Signature.RSAPSS()
	} else {
		in, err = signature.Signature.RSASSA()
	}
	size := k.info.Algorithm.RSABits() / 8
	if err != nil || len(in.Sig.Buffer) > size {
		return nil, errors.New("the TPM's signature is not one of this key")
	}
	out := make([]byte, size)
	copy(out[size-len(in.Sig.Buffer):], in.Sig.Buffer)
	return out, nil
}

func (k *key) signECDSA(l *link, digest []byte) ([]byte, error) {
	if size := (k.info.Algorithm.Curve().Params().BitSize + 7) / 8; len(digest) > size {
		digest = digest[:size] // FIPS 186-5, section 6.4.1, step 2; all our curves have whole bytes
	}
	hash := tpm2.TPMAlgSHA256
	if len(digest) > crypto.SHA256.Size() {
		hash = tpm2.TPMAlgSHA384
	}
	signature, err := k.ask(l, digest, tpm2.TPMAlgECDSA, hash)
	if err != nil {
		return nil, err
	}
	in, err := signature.Signature.ECDSA()
	if err != nil {
		return nil, errors.New("the TPM's signature is not one of this key")
	}
	return encodeECDSA(in)
}

// encodeECDSA writes SEQUENCE{r,s} (RFC 3279, section 2.2.3).
func encodeECDSA(in *tpm2.TPMSSignatureECC) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(in.SignatureR.Buffer))
		b.AddASN1BigInt(new(big.Int).SetBytes(in.SignatureS.Buffer))
	})
	return b.Bytes()
}

// authorise runs a command under the login's session. The first one for a key may cost one of the TPM's tries, since
// its file may have been wrapped under another PIN, so that it first asks whether there is one to spend. Further ones do not ask.
func (k *key) authorise(l *link, loaded tpm2.NamedHandle, run func(tpm2.AuthHandle) error) error {
	if !k.accepted {
		if err := l.mayTry(); err != nil {
			return err
		}
	}
	handle, err := l.authorised(loaded, k.token.auth)
	if err != nil {
		return err
	}
	err = run(handle)
	if isRejected(err) {
		k.accepted, k.refused = false, true
		l.endSession() // if that was what is wrong, it must not cost other keys a try
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	k.accepted = k.accepted || err == nil
	return err
}

// ask runs TPM2_Sign under the login's session.
func (k *key) ask(l *link, digest []byte, scheme, hash tpm2.TPMAlgID) (*tpm2.TPMTSignature, error) {
	loaded, err := l.load(k.file.object)
	if err != nil {
		return nil, err
	}
	var rsp *tpm2.SignResponse
	err = k.authorise(l, loaded, func(handle tpm2.AuthHandle) (err error) {
		rsp, err = tpm2.Sign{
			KeyHandle: handle,
			Digest:    tpm2.TPM2BDigest{Buffer: digest},
			InScheme: tpm2.TPMTSigScheme{
				Scheme:  scheme,
				Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: hash}),
			},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(l.transport)
		return err
	})
	if err != nil {
		return nil, err
	}
	if rsp.Signature.SigAlg != scheme {
		return nil, errors.New("the TPM signed by another scheme")
	}
	return &rsp.Signature, nil
}

func tpmHash(hash crypto.Hash) tpm2.TPMAlgID {
	switch hash {
	case crypto.SHA256:
		return tpm2.TPMAlgSHA256
	case crypto.SHA384:
		return tpm2.TPMAlgSHA384
	case crypto.SHA512:
		return tpm2.TPMAlgSHA512
	case crypto.SHA3_256:
		return tpm2.TPMAlgSHA3256
	case crypto.SHA3_512:
		return tpm2.TPMAlgSHA3512
	}
	return tpm2.TPMAlgNull
}
