// Package tunnel carries one private byte stream between a client and a
// server that meet at a bridge.
//
// Both ends dial the bridge and authenticate to it with mutual TLS (the outer
// session). Each then sends a 13-byte [Hello] that names its role. When the
// bridge has a client and a server waiting, it answers both with the same
// 17-byte [Ack] and from then on only copies bytes. Inside the outer session
// the two ends run a second mutual TLS session (the inner session), in which
// the client is the TLS client and the server the TLS server, so the bridge
// can neither read nor alter what they say.
//
// A client calls [Dial]. A server calls [Listen], which dials out, keeps legs
// waiting at the bridge and hands over each one whose inner handshake is done;
// a server opens no listening socket of its own. Both get a [Conn], a net.Conn
// whose reads and writes are those of the inner session.
//
// # Identity
//
// A peer is whoever the first Common Name of its certificate says, see
// [CertificateName]. Only TLS 1.3 is spoken, only the configured roots are
// trusted, and no session is ever resumed.
//
// # Certificates at run time
//
// [Config.Settings] is asked for the newest certificates and revocation lists
// before each handshake. A session lives on when they change; a server cuts
// those of revoked clients with [Listener.CutRevoked].
//
// # End of stream
//
// Read returns io.EOF only after the peer's inner close_notify. A stream that
// ends in any other way, at the bridge's or the network's hand, is
// [ErrTruncated].
//
// # Compatibility
//
// The bytes are those of version 2 of the Siguldry protocol. The inner ALPN
// "chancery/1" ([Protocol]) tells that both ends are ours; a peer without ALPN
// is served as a plain version 2 peer.
package tunnel
