// Package worker keeps one token in the custody of one process.
//
// A Vault has the token open, holds its PIN while somebody has a key unlocked, and signs for whoever
// shows a capability. Serve runs a Vault at one end of a socketpair, in a process of its own;
// Start begins such a process and returns the other end, a Process, which has the same methods. So the process
// that faces the network loads no PKCS#11 module, opens no TPM and never has a PIN in its memory: the
// passphrase is turned into the PIN by the Vault.
//
// # Capabilities
//
// Unlock answers with a capability: 256 random bits that the Vault has bound to session, user
// and key. Sign without one that fits all three is refused by the Vault itself, whatever the process
// at the other end believes. A capability ends with Lock, when its time or its number of signatures is over, and with the Vault.
// When none is left the Vault logs out and forgets the PIN.
//
// A Vault bears with few wrong PINs, for whoever can show it grants of their own making could otherwise try one PIN after the
// other while the login is kept up by the right one. It sends no PIN again that its token rejected. Of passphrases it derives
// no more at once than it was told when its process began, so that nobody at the other end of the link can make it take more memory.
//
// # Calls that do not return
//
// A call into a module cannot be cancelled. One that takes longer than Config.CallTimeout ends its whole
// process, and so does a process that no longer answers at all. A login that waits for another process's login of
// the same token (package guard) is no such call yet: it ends with token.ErrBusy when that takes too long. Every call that was under way fails with ErrGone,
// Process.Done says so, and whoever wants the token again starts another process. A caller whose context ends is told at
// once; its call holds its slot until the worker has answered, so that what nobody waits for any more does not pile up.
//
// # The link
//
// Frames are binary: length u32, kind u8, call u64, body; big endian. Bodies are JSON but for Sign and its
// result, which are packed (see message.go). Whoever has a frame ready writes it, and takes along
// what others have made ready meanwhile. In the worker a fixed set of goroutines take turns at reading: who has read a
// request to sign lets the next one read and serves it, so that no request changes hands. Neither end trusts the other: a frame
// that cannot be read ends the link and the worker, what is queued is bounded, and a worker may only ask the ledger
// about the token that it was asked to unlock. What was written and read is overwritten.
//
// # Signals
//
// Serve ignores SIGINT, SIGTERM and SIGHUP. A worker ends when the link does: with its parent, however that ended.
package worker
