// Package pki makes the certificates that a bridge, its servers and their
// clients need, for people who have no certification authority of their own.
//
// A [CA] is a P-256 key with a self-signed certificate that may issue leaves
// and no further authorities. [CA.Issue] makes the three kinds of leaves:
//
//	kind     extended key usage       subject alternative names   used in
//	Bridge   serverAuth               DNS names, IP addresses     outer sessions
//	Server   clientAuth, serverAuth   DNS names, IP addresses     both sessions
//	Client   clientAuth               none                        both sessions
//
// The Common Name is the identity: the user's name in a client's certificate,
// and the name that the bridge allows to register in a server's.
//
// Certificates follow RFC 5280; keys are PKCS#8 PEM and not encrypted.
// [WritePair] writes both so that only their owner can read the key.
package pki
