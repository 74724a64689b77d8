package wire_test

import (
	"bytes"
	"testing"

	"chancery/tunnel/wire"
)

func BenchmarkDecodeSign(b *testing.B) {
	benchmarkDecode(b, wire.AppendRequest(nil, goldenRequests["version2/sign"]))
}

func BenchmarkDecodeSignAll10000(b *testing.B) {
	digests := make([]wire.Digest, 10_000)
	for i := range digests {
		digests[i] = digest256
	}
	text := wire.AppendRequest(nil, &wire.Request{Session: session, Body: &wire.SignAll{Key: "release", Digests: digests}})
	if len(text) > wire.MaxRequestExtended {
		b.Fatalf("%d bytes do not fit in a frame", len(text))
	}
	benchmarkDecode(b, text)
}

func benchmarkDecode(b *testing.B, text []byte) {
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.DecodeRequest(text, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeSignReply(b *testing.B) {
	signature := rsaSignature
	signature.Bytes = bytes.Repeat([]byte{0xa5}, 512)
	response := &wire.Response{Session: session, ID: 7, Body: &wire.SignReply{Signature: signature}}
	var buffer []byte
	b.ReportAllocs()
	for b.Loop() {
		buffer = wire.AppendResponse(buffer[:0], response, true)
	}
}

func BenchmarkDecodeSignReply(b *testing.B) {
	signature := rsaSignature
	signature.Bytes = bytes.Repeat([]byte{0xa5}, 512)
	text := wire.AppendResponse(nil, &wire.Response{Session: session, ID: 7, Body: &wire.SignReply{Signature: signature}}, true)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.DecodeResponse(text); err != nil {
			b.Fatal(err)
		}
	}
}
