package wire_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"chancery/tunnel/wire"
)

var (
	session        = uuid.MustParse("019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70")
	idempotencyKey = uuid.MustParse("6fa459ea-ee8a-4ca4-894e-db77e160355e")
)

const (
	hex256 = "9F86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	hex384 = "768412320f7b0aa5812fce428dc4706b3cae50e02a64caa16a782249bfe8efc4b7ef1ccb126255d196047dfedf17a0a9"
	hex512 = "ee26b0dd4af7e749aa1a8ee3c10ae9923f618980772e473f8819a5d4940e0db27ac185f8a0e1d5f84f88bc887fd67b143732c304cc5fa9ad8e6f57f50028a8ff"
)

var (
	digest256 = wire.Digest{Algorithm: wire.SHA256, Hex: hex256}
	digest384 = wire.Digest{Algorithm: wire.SHA384, Hex: hex384}
	digest512 = wire.Digest{Algorithm: wire.SHA512, Hex: hex512}

	rsaSignature     = wire.Signature{Tag: wire.TagRSA, Bytes: []byte{0, 1, 2, 3}, Digest: wire.SHA256, Hash: hex256}
	p256Signature    = wire.Signature{Tag: wire.TagP256, Bytes: []byte{0x30, 6, 2, 1, 1, 2, 1, 2}, Digest: wire.SHA512, Hash: hex512}
	ed25519Signature = wire.Signature{Tag: wire.TagEd25519, Bytes: []byte{0, 1, 2, 3}}
)

func password() wire.Secret { return wire.NewSecret([]byte(`päss "w\ord"`)) }

func goldenKey(hardware *bool) wire.Key {
	return wire.Key{
		Name: "release", Algorithm: wire.RSA4K, Handle: "9F86",
		PublicKey: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		Certificates: []wire.Certificate{
			{Text: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", Type: wire.CertificateX509, Fingerprint: "AB12", Name: "release-x509"},
			{Text: "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n", Type: wire.CertificatePGP, Fingerprint: "CD34", Name: "release-openpgp"},
		},
		Hardware: hardware,
	}
}

var goldenRequests = map[string]*wire.Request{
	"version2/who_am_i":           {Session: session, ID: 0, Body: &wire.WhoAmI{}},
	"version2/list_keys":          {Session: session, ID: 7, Body: &wire.ListKeys{}},
	"version2/get_key":            {Session: session, ID: 7, Body: &wire.GetKey{Key: "release"}},
	"version2/unlock":             {Session: session, ID: 7, Body: &wire.Unlock{Key: "release", Password: password()}},
	"version2/sign":               {Session: session, ID: 7, Body: &wire.Sign{Key: "release", Digest: digest256}},
	"version2/sign_all":           {Session: session, ID: 7, Body: &wire.SignAll{Key: "release", Digests: []wire.Digest{digest256, digest512}}},
	"version2/sign_all_empty":     {Session: session, ID: 7, Body: &wire.SignAll{Key: "release", Digests: []wire.Digest{}}},
	"chancery1/sign_sha384":       {Session: session, ID: 7, Body: &wire.Sign{Key: "release", Digest: digest384}},
	"chancery1/sign_pss":          {Session: session, ID: 1<<64 - 1, Body: &wire.Sign{Key: "release", Scheme: wire.SchemePSS, Digest: digest256}},
	"chancery1/sign_message":      {Session: session, ID: 7, Body: &wire.Sign{Key: "release", Message: []byte("hello")}},
	"chancery1/sign_all_pss":      {Session: session, ID: 7, Body: &wire.SignAll{Key: "release", Scheme: wire.SchemePSS, Digests: []wire.Digest{digest256}}},
	"chancery1/sign_all_messages": {Session: session, ID: 7, Body: &wire.SignAll{Key: "release", Messages: [][]byte{[]byte("hello"), {}}}},
	"chancery1/sign_terms": {Session: session, ID: 7, Body: &wire.Sign{Key: "release", Scheme: wire.SchemePSS, Digest: digest256,
		Terms: wire.Terms{IdempotencyKey: idempotencyKey, Deadline: 5 * time.Second}}},
	"chancery1/sign_message_deadline": {Session: session, ID: 7, Body: &wire.Sign{Key: "release", Message: []byte("hello"),
		Terms: wire.Terms{Deadline: time.Millisecond}}},
	"chancery1/sign_all_idempotent": {Session: session, ID: 7, Body: &wire.SignAll{Key: "release", Digests: []wire.Digest{digest256, digest512},
		Terms: wire.Terms{IdempotencyKey: idempotencyKey}}},
	"chancery1/sign_all_messages_terms": {Session: session, ID: 7, Body: &wire.SignAll{Key: "release", Messages: [][]byte{[]byte("hello"), {}},
		Terms: wire.Terms{IdempotencyKey: idempotencyKey, Deadline: wire.MaxDeadline}}},
}

var goldenResponses = map[string]*wire.Response{
	"version2/who_am_i": {Session: session, ID: 0, Body: &wire.WhoAmIReply{User: "alice"}},
	"version2/list_keys": {Session: session, ID: 7, Body: &wire.ListKeysReply{Keys: []wire.Key{
		goldenKey(nil), {Name: "second", Algorithm: wire.P256, Handle: "ABCD", Certificates: []wire.Certificate{}}}}},
	"version2/list_keys_empty":   {Session: session, ID: 7, Body: &wire.ListKeysReply{Keys: []wire.Key{}}},
	"version2/get_key":           {Session: session, ID: 7, Body: &wire.GetKeyReply{Key: goldenKey(nil)}},
	"version2/unlock":            {Session: session, ID: 7, Body: &wire.UnlockReply{}},
	"version2/sign":              {Session: session, ID: 7, Body: &wire.SignReply{Signature: rsaSignature}},
	"version2/sign_all":          {Session: session, ID: 7, Body: &wire.SignAllReply{Signatures: []wire.Signature{rsaSignature, p256Signature}}},
	"version2/sign_all_empty":    {Session: session, ID: 7, Body: &wire.SignAllReply{Signatures: []wire.Signature{}}},
	"version2/unsupported":       {Session: session, ID: 7, Body: &wire.UnsupportedReply{}},
	"chancery1/error_conflict":   {Session: session, ID: 7, Body: wire.NewError(wire.CodeIdempotencyConflict)},
	"chancery1/error_deadline":   {Session: session, ID: 7, Body: wire.NewError(wire.CodeDeadlineExceeded)},
	"chancery1/error":            {Session: session, ID: 7, Body: wire.NewError(wire.CodeBusy)},
	"chancery1/get_key_hardware": {Session: session, ID: 7, Body: &wire.GetKeyReply{Key: goldenKey(new(bool))}},
	"chancery1/sign_message":     {Session: session, ID: 7, Body: &wire.SignReply{Signature: ed25519Signature}},
}

var compareSecrets = cmp.Comparer(func(a, b wire.Secret) bool { return bytes.Equal(a.Bytes(), b.Bytes()) })

func golden(t testing.TB, name string) []byte {
	t.Helper()
	frame, err := os.ReadFile(filepath.Join("testdata", "golden", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// payload cuts the one frame of a golden file.
func payload(t testing.TB, file []byte) []byte {
	t.Helper()
	reader := wire.NewReader(bytes.NewReader(file), wire.MaxResponse)
	frame, err := reader.Next()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(frame)
}

func TestGoldenRequests(t *testing.T) {
	for name, want := range goldenRequests {
		t.Run(name, func(t *testing.T) {
			file := golden(t, name+".request")
			if got := wire.AppendFrame(nil, wire.AppendRequest(nil, want)); !bytes.Equal(got, file) {
				t.Errorf("encoded:\n%q\nwant:\n%q", got, file)
			}
			extended := strings.HasPrefix(name, "chancery1/")
			got, err := wire.DecodeRequest(payload(t, file), extended)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, compareSecrets); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoldenResponses(t *testing.T) {
	for name, want := range goldenResponses {
		t.Run(name, func(t *testing.T) {
			file := golden(t, name+".response")
			extended := strings.HasPrefix(name, "chancery1/")
			if got := wire.AppendFrame(nil, wire.AppendResponse(nil, want, extended)); !bytes.Equal(got, file) {
				t.Errorf("encoded:\n%q\nwant:\n%q", got, file)
			}
			got, err := wire.DecodeResponse(payload(t, file))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVersion2SeesNothingOfTheExtension(t *testing.T) {
	for name, plain := range map[string]string{"chancery1/error": "version2/error", "chancery1/get_key_hardware": "version2/get_key"} {
		got := wire.AppendFrame(nil, wire.AppendResponse(nil, goldenResponses[name], false))
		if want := golden(t, plain+".response"); !bytes.Equal(got, want) {
			t.Errorf("%s to a version 2 peer:\n%q\nwant:\n%q", name, got, want)
		}
	}
}

func TestGoldenErrorsOfOtherServers(t *testing.T) {
	for name, want := range map[string]wire.Code{
		"version2/error":               wire.CodeInternal,
		"foreign/error_detail":         wire.CodeInternal,
		"foreign/error_requires_admin": wire.CodeRequiresAdmin,
		"foreign/error_no_such_user":   wire.CodeNoSuchUser,
	} {
		got, err := wire.DecodeResponse(payload(t, golden(t, name+".response")))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		failure, ok := got.Body.(*wire.Error)
		if !ok || failure.Code != want || failure.Message == "" || failure.Retry != wire.RetryNo {
			t.Errorf("%s: decoded as %#v, want code %s with a message", name, got.Body, want)
		}
	}
}

func TestGoldenDone(t *testing.T) {
	file := golden(t, "version2/done.request")
	if got := wire.AppendDone(nil); !bytes.Equal(got, file) {
		t.Errorf("AppendDone = %x, want %x", got, file)
	}
	if _, err := wire.NewReader(bytes.NewReader(file), 1).Next(); !errors.Is(err, wire.ErrDone) {
		t.Errorf("Next = %v, want ErrDone", err)
	}
}

func TestEveryGoldenFileIsUsed(t *testing.T) {
	err := filepath.WalkDir("testdata/golden", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Name() == "README.md" {
			return err
		}
		name := strings.TrimPrefix(filepath.ToSlash(path), "testdata/golden/")
		_, request := goldenRequests[strings.TrimSuffix(name, ".request")]
		_, response := goldenResponses[strings.TrimSuffix(name, ".response")]
		other := strings.HasPrefix(name, "foreign/") || name == "version2/done.request" || name == "version2/error.response"
		if !request && !response && !other {
			t.Errorf("%s is compared with nothing", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
