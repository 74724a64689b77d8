// Package wire is the language spoken inside the inner TLS session: frames,
// requests, responses and error codes, shared by client and server. It knows
// bytes and shapes only; who may do what is the business of others.
//
// The messages are those of Siguldry's protocol version 2. A peer that has
// negotiated "chancery/1" ("extended" in this package) may also use the fields,
// algorithms and error codes that version 2 does not know. Plain version 2 peers
// get exactly what version 2 defines.
//
// # Reading
//
// A [Reader] cuts the byte stream into frames without trusting their length.
// [DecodeRequest] and [DecodeResponse] are strict where encoding/json is
// lenient: names are case-sensitive, a known field may stand only once, invalid
// UTF-8 and lone surrogates are refused, and nesting is bounded. Unknown fields
// are ignored at every level.
//
// # Writing
//
// [AppendRequest], [AppendResponse] and [AppendFrame] append to the caller's
// buffer, so that many messages leave in one write.
package wire

// Limits of one frame's JSON, in bytes.
const (
	// MaxRequest bounds requests of plain version 2.
	MaxRequest = 32 << 10
	// MaxRequestExtended bounds requests under chancery/1.
	MaxRequestExtended = 1 << 20
	// MaxResponse bounds what a client accepts. A batch's signatures and a key
	// list with its certificates are larger than the request that asked for them.
	MaxResponse = 64 << 20
	// MaxBatch bounds the entries of a sign_all. No frame has room for as many digests that are valid; without it one
	// would for hundreds of thousands of empty messages, each of which costs the server much more than its text.
	MaxBatch = MaxRequestExtended / 64
)

// RequestLimit returns the bound of request frames for this kind of peer.
func RequestLimit(extended bool) int {
	if extended {
		return MaxRequestExtended
	}
	return MaxRequest
}
