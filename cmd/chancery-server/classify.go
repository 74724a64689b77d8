package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"

	"chancery/access"
	"chancery/admin"
	"chancery/artifact/openpgp"
	"chancery/artifact/x509cert"
	"chancery/audit"
	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/pki"
	"chancery/seal"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
	"chancery/users/sqlite"
)

// kind is what an operator meets for one sentinel error. The first in the list that fits counts.
type kind struct {
	sentinel error
	exit     cli.ExitCode
	code     string
	hint     string
}

// canceledHint is for a command that a signal stopped.
const canceledHint = "look with 'list' or 'show' at what was done, then repeat"

// restoreDatabase is what remains to do about a damaged database.
const restoreDatabase = "stop the daemon and restore the database from its backup"

var kinds = []kind{
	{context.Canceled, cli.ExitFailed, "canceled", canceledHint}, // whatever could not be had for that reason, such as a lock

	{access.ErrWrongPassphrase, cli.ExitDenied, string(wire.CodeWrongPassphrase), "each grant has its own passphrase: is it the one for this key or token?"},
	{admin.ErrNotManager, cli.ExitDenied, "not_allowed", ""},
	{admin.ErrExpired, cli.ExitDenied, string(wire.CodeGrantExpired), ""},
	{admin.ErrKeyDisabled, cli.ExitDenied, string(wire.CodeKeyDisabled), ""},
	{admin.ErrUserDisabled, cli.ExitDenied, string(wire.CodeUserDisabled), ""},
	{admin.ErrLastManager, cli.ExitFailed, "last_manager", "--yes does it all the same"},
	{admin.ErrRequest, cli.ExitUsage, "usage", ""},

	{users.ErrSealBroken, cli.ExitFailed, "seal_broken", "stop the daemon, find out who wrote to the database, and restore it from its backup; if an operator restored or unsealed it, restart the daemon"},
	{users.ErrSealClosed, cli.ExitToken, string(wire.CodeSealClosed), "'seal test' says what each seal lacks; one of them is enough"},
	{users.ErrLastSeal, cli.ExitFailed, "last_seal", "add another one first; 'seal remove --unseal-all' stores everything in the clear"},
	{users.ErrNotSealed, cli.ExitFailed, "not_sealed", "'seal add' seals it"},
	{seal.ErrUnsuitable, cli.ExitUsage, "seal_unfit", ""},
	{seal.ErrForeign, cli.ExitFailed, "seal_foreign", "'seal remove' and 'seal add' make it anew, while another seal opens"},
	{seal.ErrChanged, cli.ExitFailed, "seal_changed", "if the change was meant, 'seal remove' and 'seal add' bind it to what there is now, while another seal opens"},
	{seal.ErrPINRejected, cli.ExitToken, "seal_pin", "correct the file with the PIN"},
	{seal.ErrPINTries, cli.ExitToken, "seal_pin", "log in once with the right PIN by the token's own tool, or have its security officer set a new one"},
	{seal.ErrPIN, cli.ExitToken, "seal_pin", "correct the file with the PIN before you try again: the token counts wrong ones"},
	{seal.ErrAbsent, cli.ExitToken, "seal_absent", "is it there, plugged in, and open to the daemon's user?"},
	{users.ErrUnsealedRow, cli.ExitFailed, "database_damaged", restoreDatabase},
	{users.ErrFinalTry, cli.ExitToken, string(wire.CodeTokenFinalTry), "log in once with the right PIN by the token's own tool, which sets its count back"},
	{users.ErrPINRejected, cli.ExitToken, string(wire.CodeTokenPINRejected), ""},
	{token.ErrPINMemory, cli.ExitFailed, "pin_memory", "the directory 'pins' of the state directory must be writable; 'token unblock' forgets a damaged file"},
	{users.ErrNotFound, cli.ExitFailed, "not_found", "the list commands show the names; they are compared exactly"},
	{users.ErrExists, cli.ExitFailed, "exists", "the list and show commands tell what is there; choose another name, or delete that first"},
	{users.ErrInUse, cli.ExitFailed, "in_use", "delete what depends on it first"},
	{users.ErrName, cli.ExitUsage, "bad_name", "choose another name"},
	{users.ErrPINChangeInFlight, cli.ExitUnreachable, "pin_change_in_flight", "'token change-pin --settle' completes it"},
	{users.ErrStale, cli.ExitUnreachable, "changed_meanwhile", "somebody else changed the same at this moment; try again"},

	{token.ErrPINIncorrect, cli.ExitDenied, "pin_incorrect", "check the PIN before you try again: the token counts wrong ones, and a few lock it"},
	{token.ErrPINLocked, cli.ExitToken, string(wire.CodeTokenLocked), "have the token's security officer set a new PIN with the token's own tool; then 'token repair-pin' wraps it for all grants"},
	{token.ErrPINInvalid, cli.ExitUsage, "pin_invalid", "choose another PIN; the token's manual says which it takes"},
	{token.ErrTokenAbsent, cli.ExitToken, string(wire.CodeTokenAbsent), "is it plugged in, its service running, and the path right? 'token probe' shows what a module has"},
	{token.ErrUnsupported, cli.ExitFailed, "not_supported", "choose what this token can do; 'token probe' lists the algorithms of a module's tokens"},
	{token.ErrBusy, cli.ExitUnreachable, string(wire.CodeTokenBusy), "try again; 'token add --max-sessions' bounds what the daemon takes"},
	{token.ErrKeyExists, cli.ExitFailed, "key_exists", "'key adopt' registers a key that the token holds already"},
	{token.ErrNoKey, cli.ExitFailed, "key_absent", "'token show --keys' lists what the token holds"},
	{token.ErrMismatch, cli.ExitFailed, string(wire.CodeKeyMismatch), "do not sign with it before you know who changed it; then restore the token's key, or 'key delete' and 'key adopt' it anew"},
	{token.ErrLoginRequired, cli.ExitUnreachable, "login_required", "something logged the token out meanwhile; try again"},

	{access.ErrEnrolment, cli.ExitUsage, "bad_enrolment", "have the user run 'chancery enroll' again and send the whole line"},
	{access.ErrParameters, cli.ExitUsage, "bad_enrolment", "have the user run 'chancery enroll' again"},
	{users.ErrUnreadable, cli.ExitFailed, "database_damaged", restoreDatabase},
	{access.ErrMalformed, cli.ExitFailed, "database_damaged", restoreDatabase},

	{openpgp.ErrOptions, cli.ExitUsage, "usage", ""},
	{openpgp.ErrUnsupported, cli.ExitFailed, "not_supported", ""},
	{x509cert.ErrSubject, cli.ExitUsage, "usage", ""},
	{x509cert.ErrOptions, cli.ExitUsage, "usage", ""},
	{x509cert.ErrUnsupported, cli.ExitFailed, "not_supported", ""},
	{x509cert.ErrCertificate, cli.ExitFailed, "certificate_invalid", "give one X.509 certificate in PEM (BEGIN CERTIFICATE)"},
	{openpgp.ErrCertificate, cli.ExitFailed, "certificate_invalid", "give one public OpenPGP certificate in ASCII armour"},

	{pki.ErrExists, cli.ExitFailed, "file_exists", "move it away first: nothing is overwritten"},
	{pki.ErrRequest, cli.ExitUsage, "usage", ""},
	{pki.ErrCA, cli.ExitFailed, "ca_unusable", "name with --ca a directory that 'chancery-server pki init' made"},
	{certfile.ErrUnusable, cli.ExitUsage, "certificate_unusable", "see the table [tls] of the configuration"},

	{audit.ErrUnavailable, cli.ExitUnreachable, string(wire.CodeAuditUnavailable), "nothing is done without a record: make room on the disk of the audit log, or see what its error says, and try again"},
	{audit.ErrDamaged, cli.ExitFailed, "audit_damaged", "'audit verify' shows all that is wrong; restore the file from a backup, or move the directory away to begin a new log"},
	{sqlite.ErrPermissions, cli.ExitFailed, "state_permissions", ""},
	{sqlite.ErrSchema, cli.ExitFailed, "database_newer", "install the newer version"},
	{syscall.ENOSPC, cli.ExitFailed, "disk_full", "make room; nothing half-done is left in the database"},
	{context.DeadlineExceeded, cli.ExitUnreachable, "timeout", "try again"},
}

// classify turns the errors of all packages into what an operator meets.
func classify(err error) *cli.Error {
	for _, k := range kinds {
		if errors.Is(err, k.sentinel) {
			return &cli.Error{Exit: k.exit, Code: k.code, Message: forPeople(err), Hint: k.hint, Cause: err}
		}
	}
	if k, ok := databaseKind(err); ok {
		return &cli.Error{Exit: k.exit, Code: k.code, Message: forPeople(err), Hint: k.hint, Cause: err}
	}
	return &cli.Error{Exit: cli.ExitFailed, Code: "failed", Message: forPeople(err), Cause: err}
}

// databaseKinds is by SQLite's primary result codes (sqlite.org/rescode.html).
var databaseKinds = map[int]kind{
	5:  {exit: cli.ExitUnreachable, code: "database_busy", hint: "another process is changing the database; try again"},
	6:  {exit: cli.ExitUnreachable, code: "database_busy", hint: "another process is changing the database; try again"},
	8:  {exit: cli.ExitFailed, code: "state_unwritable", hint: "the database or its file system is read-only: mount it for writing, and run this as the user of the daemon"},
	9:  {exit: cli.ExitFailed, code: "canceled", hint: canceledHint},
	10: {exit: cli.ExitFailed, code: "disk_failed", hint: "look at the system's log for the disk's errors before you go on"},
	11: {exit: cli.ExitFailed, code: "database_damaged", hint: restoreDatabase},
	13: {exit: cli.ExitFailed, code: "disk_full", hint: "make room; nothing half-done is left in the database"},
	14: {exit: cli.ExitFailed, code: "state_unusable", hint: "see state.directory in the configuration, and run this as the user of the daemon"},
	26: {exit: cli.ExitFailed, code: "database_damaged", hint: restoreDatabase},
}

// databaseKind sorts what SQLite itself has failed with.
func databaseKind(err error) (kind, bool) {
	var coded interface {
		error
		Code() int
	}
	if !errors.As(err, &coded) {
		return kind{}, false
	}
	k, ok := databaseKinds[coded.Code()&0xff]
	return k, ok
}

var packageNames = []string{"access", "admin", "audit", "certfile", "guard", "openpgp", "pki", "pkcs11", "seal", "signer", "soft", "token", "tunnel", "users", "users/sqlite", "x509cert"}

// forPeople leaves out which package said what; the log keeps it.
func forPeople(err error) string { return plain(err.Error()) }

// plain makes one line of it: each of several errors that were joined goes behind a semicolon. A line that is indented
// belongs to the one before.
func plain(text string) string {
	var sentences []string
	for line := range strings.Lines(text) {
		told := plainLine(line)
		switch {
		case told == "":
		case len(sentences) > 0 && strings.ContainsRune(" \t", rune(line[0])):
			sentences[len(sentences)-1] += " " + told
		default:
			sentences = append(sentences, told)
		}
	}
	return strings.Join(sentences, "; ")
}

func plainLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	parts := slices.DeleteFunc(strings.Split(text, ": "), func(part string) bool { return slices.Contains(packageNames, part) })
	return endings.Replace(strings.Join(parts, ": "))
}

// endings are people's words for how a context ended.
var endings = strings.NewReplacer(
	context.DeadlineExceeded.Error(), "it took longer than it may",
	context.Canceled.Error(), "the command was stopped before its end",
)
