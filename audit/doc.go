// Package audit keeps the record of every signature, every refusal and every
// administrative act: an append-only log whose records are chained by hash.
//
// Open a [Log] and call [Log.Append]: it returns when the record is on disk, so
// that what it records may be done. [Read] shows records, [Verify] checks the chain.
//
// # Format
//
// The directory holds segments named after their first sequence number,
// audit-00000000000000000001.jsonl and so on. A segment has one JSON object a
// line, at most [MaxLine] bytes with the newline:
//
//	{"seq":7,"batch":6,"prev":"<hex>","time":"…","process":"…","kind":"sign",…}
//
// seq counts up by one over all segments. prev is the SHA-256 of the line before
// with its newline (sed -n 41p SEGMENT | sha256sum gives what line 42 says), and
// 64 zeros in the very first line. batch is the sequence number of the first
// record made durable by the same write, left out where that is the record
// itself. The order of the fields is fixed; time is RFC 3339 in UTC and is never
// used for order, because clocks jump. The first line of a segment has the kind
// [KindSegment] and names the segment before, so that prev there is that
// segment's last hash. Readers pass over fields that they do not know, which
// lets older programs read newer logs; the hashes cover them all the same.
//
// Every character that could steer a terminal is escaped.
//
// # What the chain shows
//
// A record that was changed, left out, repeated or moved does not fit its
// neighbours. Two things the chain alone cannot show: records cut off the very
// end, and a tail (or the whole log) written anew by somebody who can write the
// files. Both need a [Head] kept elsewhere, printed or sent to another host, and
// given to Verify. The file head in the directory says how far the log was
// known to be durable; it shows accidents, not attackers.
//
// # Durability
//
// One goroutine writes. It takes all records that are waiting, chains them,
// writes them in one write, calls fdatasync once and answers them all. Whoever
// arrives in the meantime goes in the next batch, so that fsyncs are shared
// exactly when there is a queue, and no timer delays anybody. Where several
// came last time, those who are about to append get the processor first, as
// long as more of them come and few wait: what they do has to be done anyway.
//
// When a write or sync fails, everybody in the batch gets [ErrUnavailable] and
// the segment is cut back to where it was known to be durable. After a failed
// fsync the page cache may hold what the disk does not, so before the next write
// the file is synced, dropped from the cache and its end read back. Each later
// Append tries again, at most once in [Config.RetryDelay], and the first record
// after an outage says that there was one.
//
// # Several processes
//
// The daemon and the operators' commands append to the same log. A batch is
// written under flock on the directory itself: there is no lock file to delete,
// and the kernel gives the lock up when its holder dies. Whoever waits for it
// first takes the file turn, so that a busy daemon cannot starve a command. Under the lock a process looks whether the
// segment still ends where it left it and whether the segment that would follow
// exists; if so, nobody has appended, since bytes within that end never change.
// Otherwise it goes on from the file head, which is rewritten after every
// batch, and reads what follows.
//
// A process killed at any moment leaves either whole lines behind head, which
// are kept because they may have been acknowledged, or an incomplete last line,
// which cannot have been. The next one to append moves those bytes to a file
// torn-…, cuts them off, and writes a record of the kind [KindRecovered] that
// names the file. A damaged record that was durable before is never cut off:
// the log then refuses to go on with [ErrDamaged].
//
// Segments but the last may be moved to an archive while the log is in use.
// Whoever restores a log from a backup leaves the file head out: it may be newer
// than the segments beside it.
package audit
