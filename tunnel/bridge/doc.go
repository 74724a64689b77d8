// Package bridge accepts clients and servers, authenticates both, pairs them
// and copies bytes between them. It reads nothing of what it copies: that is
// the inner TLS session of its two peers, and this package links no parser
// for it.
//
// # Life of a connection
//
// Each accepted connection has one goroutine for all its life. It runs the TLS
// handshake and reads the hello under a deadline, then waits for a partner
// while reading, so that a leg that closes is noticed at once, and finally
// copies from its leg to its partner's.
//
// A waiting server leg has nothing to say: one that sends or closes is dropped.
// A waiting client's early bytes (its inner ClientHello) are kept, up to
// 64 KiB, and flow to the server after pairing.
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
// # End of a pair
//
// An orderly end (TLS close_notify) in one direction is passed on, and the
// other direction has Config.Linger to end too. Any error ends both.
package bridge
