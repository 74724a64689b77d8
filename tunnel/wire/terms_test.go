package wire_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"chancery/tunnel/wire"
)

func TestTermsOfEveryForm(t *testing.T) {
	sign := func(fields string) string { return request(`{"sign":{"key":"k","message":"",` + fields + `}}`) }
	for text, want := range map[string]wire.Terms{
		sign(`"idempotency_key":"6FA459EA-EE8A-4CA4-894E-DB77E160355E"`):          {IdempotencyKey: idempotencyKey},
		sign(`"idempotency_key":"6fa459eaee8a4ca4894edb77e160355e"`):              {IdempotencyKey: idempotencyKey},
		sign(`"idempotency_key":"{6fa459ea-ee8a-4ca4-894e-db77e160355e}"`):        {IdempotencyKey: idempotencyKey},
		sign(`"idempotency_key":"urn:uuid:6fa459ea-ee8a-4ca4-894e-db77e160355e"`): {IdempotencyKey: idempotencyKey},
		sign(`"deadline_ms":1`):                    {Deadline: time.Millisecond},
		sign(`"deadline_ms":18446744073709551615`): {Deadline: wire.MaxDeadline},
	} {
		got, err := decodes(text, true)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if terms := got.Body.(*wire.Sign).Terms; terms != want {
			t.Errorf("%s: %+v", text, terms)
		}
		got, err = decodes(strings.Replace(text, `"message":""`, `"digest_algorithm":"Sha256","digest":"00"`, 1), false)
		if err != nil || got.Body.(*wire.Sign).Terms != (wire.Terms{}) {
			t.Errorf("%s from a version 2 peer: %+v, %v", text, got, err)
		}
	}
}

func TestTermsOutOfRangeAreWrittenWithinIt(t *testing.T) {
	for deadline, want := range map[time.Duration]string{
		-time.Second:            `"message":""}`,
		time.Nanosecond:         `"deadline_ms":1}`,
		1000 * time.Hour:        `"deadline_ms":86400000}`,
		5999 * time.Microsecond: `"deadline_ms":5}`,
	} {
		body := &wire.Sign{Key: "k", Message: []byte{}, Terms: wire.Terms{Deadline: deadline}}
		if text := wire.AppendRequest(nil, &wire.Request{Body: body}); !bytes.Contains(text, []byte(want)) {
			t.Errorf("%v is written as %s", deadline, text)
		}
	}
}

func TestTermsAreExchangedInACopy(t *testing.T) {
	terms := wire.Terms{IdempotencyKey: idempotencyKey, Deadline: time.Second}
	for _, body := range []wire.RequestBody{&wire.Sign{Key: "k", Digest: digest256}, &wire.SignAll{Key: "k", Digests: []wire.Digest{digest256}}} {
		before := string(wire.AppendRequest(nil, &wire.Request{Body: body}))
		with := wire.WithTerms(body, terms)
		if wire.TermsOf(with) != terms || wire.TermsOf(body) != (wire.Terms{}) {
			t.Errorf("%s: %+v made of %+v", body.Name(), with, body)
		}
		if after := string(wire.AppendRequest(nil, &wire.Request{Body: wire.WithTerms(with, wire.Terms{})})); after != before {
			t.Errorf("%s became %s", before, after)
		}
	}
	body := &wire.GetKey{Key: "k"}
	if wire.WithTerms(body, terms) != wire.RequestBody(body) || wire.TermsOf(body) != (wire.Terms{}) {
		t.Error("a request that does not sign has terms")
	}
}
