// Package client lets a program sign with keys that a Chancery server keeps.
//
// A [Client] holds one connection through the bridge to a server and shares it
// among all goroutines: many requests are in flight at once, and what is queued
// leaves in one write. [Client.Unlock] opens a key with its passphrase;
// [Client.Key] then gives a [Key], which is a crypto.Signer, and
// [Client.SignAll] signs many digests in batches.
//
// # Trust
//
// Every signature is verified with the key's public half before it is returned.
// The public half comes from the server on first use and is remembered as long
// as the Client lives; Config.Pin ties a key to the handle (SHA-256 of its
// SubjectPublicKeyInfo) that the caller knows, and anything else is refused.
//
// # Failures
//
// The connection is made again when it is needed, after a growing pause, and
// keys that were unlocked are unlocked again on it: their passphrases stay in
// memory until Close, which wipes them.
//
// A request that surely was not sent is sent again, and so is one that only
// reads. A request to sign carries an idempotency key under chancery/1: when the
// connection breaks while it is on its way it is sent again with the same key, and the
// server, which knows it by that, signs once. Nothing else that may have been
// signed is repeated: with a server of plain version 2, or when the attempts run
// out, the call fails with [ErrInterrupted], and whether to sign again is the
// caller's decision. A server that is busy is asked again within the context's
// deadline. All failures are an *[Error] with a stable code.
//
// The key holds as long as the server remembers it, which a restart ends. A
// repetition that meets another server, or the same one after a restart, is signed anew;
// the audit log shows both with one key.
//
// # Compatibility
//
// The client offers "chancery/1" to the server. One that does not know it is
// spoken to in plain version 2 of the Siguldry protocol: replies in order, no
// PSS, no messages, and no reason for a failure beyond "internal".
package client
