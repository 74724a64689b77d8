package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"chancery/tunnel/wire"
)

const sid = `"session_id":"019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70"`

// request wraps a body into an envelope with id 7.
func request(body string) string { return `{` + sid + `,"request_id":7,"request":` + body + `}` }

func decodes(text string, extended bool) (*wire.Request, error) {
	return wire.DecodeRequest([]byte(text), extended)
}

func TestDecodeRequestAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"unknown fields at every level": `{"x":{"request":[1,{"a":null}]},` + sid + `,"request_id":7,"request":{"sign":{"y":"z","key":"k","digest_algorithm":"Sha256","digest":"00","key2":{}}}}`,
		"unknown fields twice":          `{"x":1,"x":2,` + sid + `,"request_id":7,"request":{"who_am_i":{"a":1,"a":2}}}`,
		"another field order":           `{"request":{"who_am_i":{}},"request_id":7,` + sid + `}`,
		"whitespace":                    " {\n" + sid + " ,\t\"request_id\" : 7 ,\r\n\"request\" : { \"who_am_i\" : { } } } \n",
		"escaped names":                 `{` + sid + `,"\u0072equest_id":7,"request":{"who\u005fam_i":{}}}`,
		"a known name in another case":  `{` + sid + `,"request_id":7,"Request_ID":"x","request":{"who_am_i":{}}}`,
		"braced session":                `{"session_id":"{019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70}","request_id":7,"request":{"who_am_i":{}}}`,
		"urn session":                   `{"session_id":"urn:uuid:019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70","request_id":7,"request":{"who_am_i":{}}}`,
		"simple session":                `{"session_id":"019f1c6e7a407c319f023d5e8a1b6c70","request_id":7,"request":{"who_am_i":{}}}`,
		"upper-case session":            `{"session_id":"019F1C6E-7A40-7C31-9F02-3D5E8A1B6C70","request_id":7,"request":{"who_am_i":{}}}`,
		"scheme without extension":      request(`{"sign":{"key":"k","digest_algorithm":"Sha256","digest":"00","scheme":7}}`),
		"terms without extension":       request(`{"sign":{"key":"k","digest_algorithm":"Sha256","digest":"00","idempotency_key":7,"deadline_ms":"x","deadline_ms":-1}}`),
		"deepest nesting":               request(`{"who_am_i":{"x":` + strings.Repeat("[", 61) + strings.Repeat("]", 61) + `}}`),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodes(text, false)
			if err != nil {
				t.Fatal(err)
			}
			if got.ID != 7 || got.Session != session {
				t.Errorf("id %d of session %s", got.ID, got.Session)
			}
		})
	}
}

func TestDecodeRequestAnswersUnsupported(t *testing.T) {
	sign := func(fields string) string { return request(`{"sign":{"key":"k",` + fields + `}}`) }
	const key = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
	cases := []struct {
		name, text string
		id         uint64
		extended   bool
	}{
		{"unknown tag", request(`{"format_disk":{}}`), 7, false},
		{"tag in another case", request(`{"Who_Am_I":{}}`), 7, false},
		{"digest algorithm in another case", sign(`"digest_algorithm":"sha256","digest":"00"`), 7, false},
		{"unknown digest algorithm", sign(`"digest_algorithm":"Md5","digest":"00"`), 7, true},
		{"Sha384 without extension", sign(`"digest_algorithm":"Sha384","digest":"00"`), 7, false},
		{"message without extension", sign(`"message":"AA=="`), 7, false},
		{"messages without extension", request(`{"sign_all":{"key":"k","messages":[]}}`), 7, false},
		{"two tags", request(`{"who_am_i":{},"list_keys":{}}`), 7, false},
		{"the same tag twice", request(`{"who_am_i":{},"who_am_i":{}}`), 7, false},
		{"no tag", request(`{}`), 7, false},
		{"bare tag", request(`"who_am_i"`), 7, false},
		{"null body", request(`{"who_am_i":null}`), 7, false},
		{"array body", request(`{"who_am_i":[]}`), 7, false},
		{"string body", request(`{"who_am_i":""}`), 7, false},
		{"missing key", request(`{"get_key":{}}`), 7, false},
		{"null key", request(`{"get_key":{"key":null}}`), 7, false},
		{"key in another case", request(`{"get_key":{"Key":"k"}}`), 7, false},
		{"key twice", request(`{"get_key":{"key":"a","key":"b"}}`), 7, false},
		{"key twice, once escaped", request(`{"get_key":{"key":"a","k\u0065y":"b"}}`), 7, false},
		{"missing password", request(`{"unlock":{"key":"k"}}`), 7, false},
		{"missing digest", sign(`"digest_algorithm":"Sha256"`), 7, false},
		{"digests no list", request(`{"sign_all":{"key":"k","digests":{}}}`), 7, false},
		{"digest no pair", request(`{"sign_all":{"key":"k","digests":[["Sha256"]]}}`), 7, false},
		{"digest a triple", request(`{"sign_all":{"key":"k","digests":[["Sha256","00","00"]]}}`), 7, false},
		{"missing session", `{"request_id":7,"request":{"who_am_i":{}}}`, 7, false},
		{"bad session", `{"session_id":"nonsense","request_id":7,"request":{"who_am_i":{}}}`, 7, false},
		{"session in wrong brackets", `{"session_id":"(019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70)","request_id":7,"request":{"who_am_i":{}}}`, 7, false},
		{"missing request", `{` + sid + `,"request_id":7}`, 7, false},
		{"bad request before its id", `{"request":7,"request_id":18446744073709551615,` + sid + `}`, 1<<64 - 1, false},
		{"missing id", `{` + sid + `,"request":{"who_am_i":{}}}`, 0, false},
		{"negative id", `{` + sid + `,"request_id":-1,"request":{"who_am_i":{}}}`, 0, false},
		{"string id", `{` + sid + `,"request_id":"7","request":{"who_am_i":{}}}`, 0, false},
		{"fractional id", `{` + sid + `,"request_id":7.0,"request":{"who_am_i":{}}}`, 0, false},
		{"exponential id", `{` + sid + `,"request_id":7e0,"request":{"who_am_i":{}}}`, 0, false},
		{"id beyond u64", `{` + sid + `,"request_id":18446744073709551616,"request":{"who_am_i":{}}}`, 0, false},
		{"null id", `{` + sid + `,"request_id":null,"request":{"who_am_i":{}}}`, 0, false},
		{"array", `[]`, 0, false},
		{"string", `"who_am_i"`, 0, false},
		{"number", `7`, 0, false},
		{"null", `null`, 0, false},
		{"unknown scheme", sign(`"digest_algorithm":"Sha256","digest":"00","scheme":"PSS"`), 7, true},
		{"digest and message", sign(`"digest_algorithm":"Sha256","digest":"00","message":"AA=="`), 7, true},
		{"neither digest nor message", sign(`"scheme":"pss"`), 7, true},
		{"half a digest", sign(`"digest":"00"`), 7, true},
		{"half a digest and message", sign(`"digest":"00","message":"AA=="`), 7, true},
		{"unpadded base64", sign(`"message":"AA"`), 7, true},
		{"base64 with a newline", sign(`"message":"AA\n=="`), 7, true},
		{"base64 with stray bits", sign(`"message":"AB=="`), 7, true},
		{"base64 for URLs", sign(`"message":"__--"`), 7, true},
		{"digests and messages", request(`{"sign_all":{"key":"k","digests":[],"messages":[]}}`), 7, true},
		{"neither digests nor messages", request(`{"sign_all":{"key":"k"}}`), 7, true},
		{"idempotency key no UUID", sign(`"message":"","idempotency_key":"once"`), 7, true},
		{"idempotency key nil", sign(`"message":"","idempotency_key":"00000000-0000-0000-0000-000000000000"`), 7, true},
		{"idempotency key null", sign(`"message":"","idempotency_key":null`), 7, true},
		{"idempotency key twice", sign(`"message":"","idempotency_key":"` + key + `","idempotency_key":"` + key + `"`), 7, true},
		{"deadline zero", sign(`"message":"","deadline_ms":0`), 7, true},
		{"deadline negative", sign(`"message":"","deadline_ms":-1`), 7, true},
		{"deadline fractional", sign(`"message":"","deadline_ms":1.5`), 7, true},
		{"deadline a string", sign(`"message":"","deadline_ms":"5000"`), 7, true},
		{"deadline beyond u64", sign(`"message":"","deadline_ms":18446744073709551616`), 7, true},
		{"deadline twice", request(`{"sign_all":{"key":"k","messages":[],"deadline_ms":1,"deadline_ms":1}}`), 7, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := decodes(c.text, c.extended)
			var unsupported *wire.UnsupportedError
			if !errors.As(err, &unsupported) {
				t.Fatalf("decoded %+v, %v; want UnsupportedError", got, err)
			}
			if unsupported.RequestID != c.id {
				t.Errorf("request id %d, want %d", unsupported.RequestID, c.id)
			}
		})
	}
}

func TestABatchHasABoundOfEntries(t *testing.T) {
	for name, c := range map[string]struct {
		list, entry string
	}{
		"messages": {"messages", `""`},
		"digests":  {"digests", `["Sha256",""]`},
	} {
		t.Run(name, func(t *testing.T) {
			of := func(n int) string {
				entries := strings.TrimSuffix(strings.Repeat(c.entry+",", n), ",")
				return request(`{"sign_all":{"` + c.list + `":[` + entries + `],"key":"k"}}`)
			}
			got, err := decodes(of(wire.MaxBatch), true)
			if err != nil {
				t.Fatal(err)
			}
			if all := got.Body.(*wire.SignAll); max(len(all.Messages), len(all.Digests)) != wire.MaxBatch {
				t.Errorf("%d messages and %d digests", len(all.Messages), len(all.Digests))
			}
			_, err = decodes(of(wire.MaxBatch+1), true)
			var unsupported *wire.UnsupportedError
			if !errors.Is(err, wire.ErrBatchTooLarge) || !errors.As(err, &unsupported) || unsupported.RequestID != 7 {
				t.Errorf("one more: %v", err)
			}
		})
	}
}

// The bound refuses nothing that could be signed: the shortest digest takes more than its share of a frame.
func TestNoFrameHoldsMoreDigestsThanABatchMayHave(t *testing.T) {
	if shortest := len(`["Sha256",""],`) + 2*wire.SHA256.Size(); wire.MaxRequestExtended/shortest > wire.MaxBatch {
		t.Errorf("a frame has room for %d digests", wire.MaxRequestExtended/shortest)
	}
}

func TestDecodeRequestEndsTheConnection(t *testing.T) {
	good := request(`{"who_am_i":{}}`)
	for name, text := range map[string]string{
		"garbage":              "GET / HTTP/1.1\r\n\r\n",
		"nothing but space":    "  ",
		"cut off":              good[:len(good)-1],
		"trailing object":      good + good,
		"trailing byte":        good + "x",
		"trailing NUL":         good + "\x00",
		"byte order mark":      "\ufeff" + good,
		"single quotes":        `{'request_id':7}`,
		"trailing comma":       `{"request_id":7,}`,
		"comment":              good + "// really",
		"leading zero":         strings.Replace(good, ":7", ":07", 1),
		"NaN":                  strings.Replace(good, ":7", ":NaN", 1),
		"bad UTF-8 in a value": request(`{"get_key":{"key":"` + "\xff" + `"}}`),
		"bad UTF-8 ignored":    request(`{"who_am_i":{"x":"` + "\xc0\x80" + `"}}`),
		"encoded surrogate":    request(`{"get_key":{"key":"` + "\xed\xa0\x80" + `"}}`),
		"lone high surrogate":  request(`{"get_key":{"key":"\ud800"}}`),
		"lone low surrogate":   request(`{"get_key":{"key":"\udc00x"}}`),
		"surrogates reversed":  request(`{"get_key":{"key":"\udc00\ud800"}}`),
		"control character":    request(`{"get_key":{"key":"` + "\n" + `"}}`),
		"nested too deeply":    strings.Repeat("[", 65) + strings.Repeat("]", 65),
		"nested far too deep":  strings.Repeat("[", 30000),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := decodes(text, true); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("decoded %+v, %v; want ErrMalformed", got, err)
			}
		})
	}
}

func TestEscapesAreResolved(t *testing.T) {
	got, err := decodes(request(`{"get_key":{"key":"a\"\\\/\b\f\n\r\t\u00e9\u20AC\ud83d\uDE00z"}}`), false)
	if err != nil {
		t.Fatal(err)
	}
	if want := "a\"\\/\b\f\n\r\té€😀z"; got.Body.(*wire.GetKey).Key != want {
		t.Errorf("key %q, want %q", got.Body.(*wire.GetKey).Key, want)
	}
}

func TestStringsSurviveBothWays(t *testing.T) {
	for _, name := range []string{"", "plain", "<&>'", "\x00\x1f\x7f\u2028", `"\`, "é€😀", "\b\f\n\r\t"} {
		text := wire.AppendRequest(nil, &wire.Request{Session: session, Body: &wire.GetKey{Key: name}})
		if !json.Valid(text) {
			t.Errorf("%q encodes to invalid JSON %s", name, text)
		}
		got, err := wire.DecodeRequest(text, false)
		if err != nil || got.Body.(*wire.GetKey).Key != name {
			t.Errorf("%q came back as %+v, %v", name, got, err)
		}
	}
	text := wire.AppendRequest(nil, &wire.Request{Session: session, Body: &wire.GetKey{Key: "a\xffb\xe2\x82"}})
	got, err := wire.DecodeRequest(text, false)
	if err != nil || got.Body.(*wire.GetKey).Key != "a\ufffdb\ufffd\ufffd" {
		t.Errorf("broken UTF-8 came back as %+v, %v", got, err)
	}
}

func TestPassphraseLeavesNoTrace(t *testing.T) {
	for _, spelling := range []string{"tr0ub4dor", `tr0ub4d\u006fr`} {
		frame := []byte(request(`{"unlock":{"key":"k","password":"` + spelling + `"}}`))
		got, err := wire.DecodeRequest(frame, false)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(frame, []byte("ub4d")) {
			t.Errorf("the frame still holds the passphrase: %s", frame)
		}
		unlock := got.Body.(*wire.Unlock)
		if string(unlock.Password.Bytes()) != "tr0ub4dor" {
			t.Errorf("password %q", unlock.Password.Bytes())
		}
		var printed bytes.Buffer
		fmt.Fprintf(&printed, "%v %+v %#v %s %q %x %d", *unlock, unlock, unlock.Password, unlock.Password, unlock.Password, unlock.Password, unlock.Password)
		slog.New(slog.NewTextHandler(&printed, nil)).Info("unlock", "body", unlock, "password", unlock.Password)
		_ = json.NewEncoder(&printed).Encode(unlock)
		for _, trace := range []string{"ub4d", fmt.Sprintf("%x", "ub4d"), fmt.Sprint([]byte("ub4d"))} {
			if strings.Contains(printed.String(), strings.Trim(trace, "[]")) {
				t.Errorf("printing shows the passphrase: %s", &printed)
			}
		}
		unlock.Password.Wipe()
		if !bytes.Equal(unlock.Password.Bytes(), make([]byte, 9)) {
			t.Errorf("wiped, and still %q", unlock.Password.Bytes())
		}
	}
}

func TestUnsupportedErrorQuotesNoPassphrase(t *testing.T) {
	for _, text := range []string{
		request(`{"unlock":{"key":"k","password":"tr0ub4dor","password":"tr0ub4dor"}}`),
		request(`{"unlock":{"password":"tr0ub4dor"}}`),
		request(`{"unlock":{"key":"k","password":["tr0ub4dor"]}}`),
		request(`{"unlock":"tr0ub4dor"}`),
	} {
		if _, err := decodes(text, true); err == nil || strings.Contains(err.Error(), "ub4d") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestDecodeResponseRefuses(t *testing.T) {
	response := func(body string) string { return `{` + sid + `,"request_id":7,"response":` + body + `}` }
	for name, text := range map[string]string{
		"not JSON":               "x",
		"request":                request(`{"who_am_i":{}}`),
		"unknown tag":            response(`{"sign_all":{"signatures":[]}}`),
		"unsupported as object":  response(`{"unsupported":{}}`),
		"unknown bare string":    response(`"internal"`),
		"unknown reason":         response(`{"error":{"reason":"tired"}}`),
		"unknown tagged reason":  response(`{"error":{"reason":{"tired":"bob"}}}`),
		"missing reason":         response(`{"error":{}}`),
		"missing Key field":      response(`{"get_key":{"key":{"name":"k"}}}`),
		"signature of two kinds": response(`{"sign":{"signature":{"signature":{"RSA":"","P256":""},"digest":"Sha256","hash":""}}}`),
		"signature no base64":    response(`{"sign":{"signature":{"signature":{"RSA":"?"},"digest":"Sha256","hash":""}}}`),
		"digest without hash":    response(`{"sign":{"signature":{"signature":{"RSA":""},"digest":"Sha256"}}}`),
		"keys null":              response(`{"list_keys":{"keys":null}}`),
		"negative pause":         response(`{"error":{"reason":"internal","retry_after_ms":-1}}`),
		"string id":              `{` + sid + `,"request_id":"7","response":{"unlock":{}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := wire.DecodeResponse([]byte(text)); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("decoded %+v, %v; want ErrMalformed", got, err)
			}
		})
	}
}

func TestDecodeResponseKeepsUnknownNames(t *testing.T) {
	text := `{` + sid + `,"request_id":7,"new":1,"response":{"error":{"reason":"internal","code":"quota","message":"come back tomorrow","retry":"tomorrow","retry_after_ms":18446744073709551615,"x":[]}}}`
	got, err := wire.DecodeResponse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	failure := got.Body.(*wire.Error)
	if failure.Code != "quota" || failure.Message != "come back tomorrow" || failure.Retry != "tomorrow" || failure.RetryAfter <= 0 || failure.Code.Exit() != wire.ExitFailed {
		t.Errorf("decoded %+v", failure)
	}
}

func TestAServersWordsAreFitForATerminal(t *testing.T) {
	frame := `{"session_id":"019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70","request_id":1,"response":{"error":{"reason":"internal",` +
		`"code":"x\u001b[2J","message":"no\u001b]0;owned\u0007\nchancery: wrote file.sig\u202e ` + strings.Repeat("é", 100_000) + `"}}}`
	response, err := wire.DecodeResponse([]byte(frame))
	if err != nil {
		t.Fatal(err)
	}
	failed := response.Body.(*wire.Error)
	for _, text := range []string{string(failed.Code), failed.Message} {
		if strings.ContainsAny(text, "\x1b\x07\n\u202e") || utf8.RuneCountInString(text) > 1000 {
			t.Errorf("%d bytes: %.100q", len(text), text)
		}
	}
}
