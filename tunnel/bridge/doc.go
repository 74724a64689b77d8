// Package bridge accepts clients and servers, authenticates both, pairs them
// and copies bytes between them. It reads nothing of what it copies: that is
// the inner TLS session of its two peers, and this package links no parser
// for it.
//
// # Life of a connection
//
// Each accepted connection has a goroutine that runs the TLS handshake and
// reads the hello under a deadline. Another one, whose stack is still small,
// waits for a partner while reading, so that a leg that closes is noticed at
// once, and finally copies from its leg to its partner's.
//
// A waiting server leg has nothing to say: one that sends or closes is dropped.
// A waiting client's early bytes (its inner ClientHello) are kept, up to
// 64 KiB, and flow to the server after pairing.
//
// # Strangers
//
// Until it has shown a valid certificate and said its hello a connection is a
// guest in the door of its port, which has room for Config.MaxHandshakes. When
// the door is full, a guest that has sent nothing for 250 ms, or else one that
// the bridge has been waiting for and that came a second ago or earlier, makes
// room for the next, the one that came first before others. An address (of
// IPv6: a /64) with more guests than Config.MaxHandshakesPerAddress loses its
// own silent ones first.
//
// The rate of new connections of each address is bounded by a token bucket.
// Whoever shows a valid certificate gives the token back and makes the address
// known for ten minutes, in which no connection from there is dropped for its
// rate. Some 16 thousand addresses are remembered on each port.
//
// # Certificates
//
// Each handshake uses the newest of Config.Settings. A session outlives the
// certificates that it began with, but not their revocation: CutRevoked ends
// those that new revocation lists name.
//
// # Pairing
//
// Clients are served first come, first served. Of the servers that have a leg
// waiting, the one with the fewest pairs in progress gets the next client; with
// a tie, and among the legs of one server, the leg that waited longest.
//
// The ack goes to the server first. If it cannot be written, the client, whose
// ack was not, returns to the head of its queue. If the client's ack then fails,
// the server's leg is closed in order; a server dials another one at once, and
// no user waits for it.
//
// A leg may have died without a word, behind a box that answers TCP for it. A
// client that has sent its first bytes with its hello lets the bridge find out
// in time: they follow the server's ack at once, and the client's ack waits for
// the first byte that comes back. Where none comes within Config.LegAnswer, the
// leg is dropped and the client returns to the head of its queue, to be paired
// with the newest leg next. So other servers may have seen the same first bytes,
// which a TLS 1.3 client without early data can repeat safely. One client meets
// at most eight such legs. One that sends nothing before its ack is paired
// without that.
//
// # End of a pair
//
// An orderly end (TLS close_notify) in one direction is passed on, and the
// other direction has Config.Linger to end too. Any error ends both.
package bridge
