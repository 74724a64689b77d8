package faulty

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// rule is one way to misbehave in one function.
type rule struct {
	function uint32
	action   uint32
	value    uint64
	calls    int64 // that it concerns; negative: all
}

// Actions, as in faulty.c.
const (
	actionHang = iota + 1
	actionCrash
	actionReturn
	actionDelay
	actionCorrupt
	actionLimit
	actionLimitStated
	actionDuplicate
)

// functions are those that can misbehave, by their index in CK_FUNCTION_LIST.
var functions = map[string]uint32{
	"C_GetSlotList": 4, "C_GetSlotInfo": 5, "C_GetTokenInfo": 6, "C_GetMechanismList": 7, "C_GetMechanismInfo": 8,
	"C_SetPIN": 11, "C_OpenSession": 12, "C_GetSessionInfo": 15, "C_Login": 18, "C_Logout": 19,
	"C_CreateObject": 20, "C_DestroyObject": 22, "C_GetAttributeValue": 24,
	"C_FindObjectsInit": 26, "C_FindObjects": 27, "C_FindObjectsFinal": 28,
	"C_SignInit": 42, "C_Sign": 43, "C_GenerateKeyPair": 59, "C_GenerateRandom": 64,
}

// codes are the return values that commands may name.
var codes = map[string]uint64{
	"CKR_HOST_MEMORY": p11.CKR_HOST_MEMORY, "CKR_GENERAL_ERROR": p11.CKR_GENERAL_ERROR,
	"CKR_FUNCTION_FAILED": p11.CKR_FUNCTION_FAILED, "CKR_CRYPTOKI_NOT_INITIALIZED": p11.CKR_CRYPTOKI_NOT_INITIALIZED,
	"CKR_DEVICE_ERROR": p11.CKR_DEVICE_ERROR, "CKR_DEVICE_MEMORY": p11.CKR_DEVICE_MEMORY, "CKR_DEVICE_REMOVED": p11.CKR_DEVICE_REMOVED,
	"CKR_TOKEN_NOT_PRESENT": p11.CKR_TOKEN_NOT_PRESENT, "CKR_USER_NOT_LOGGED_IN": p11.CKR_USER_NOT_LOGGED_IN,
	"CKR_SESSION_HANDLE_INVALID": p11.CKR_SESSION_HANDLE_INVALID, "CKR_SESSION_CLOSED": p11.CKR_SESSION_CLOSED,
	"CKR_SESSION_COUNT": p11.CKR_SESSION_COUNT, "CKR_OBJECT_HANDLE_INVALID": p11.CKR_OBJECT_HANDLE_INVALID,
	"CKR_KEY_HANDLE_INVALID": p11.CKR_KEY_HANDLE_INVALID, "CKR_OPERATION_ACTIVE": p11.CKR_OPERATION_ACTIVE,
	"CKR_PIN_INCORRECT": p11.CKR_PIN_INCORRECT, "CKR_PIN_LOCKED": p11.CKR_PIN_LOCKED,
}

// parse reads the commands of Set.
func parse(commands string) ([]rule, error) {
	var rules []rule
	for command := range strings.FieldsFuncSeq(commands, func(r rune) bool { return r == '\n' || r == ';' }) {
		words := strings.Fields(command)
		if len(words) == 0 {
			continue
		}
		more, err := parseCommand(words[0], words[1:])
		if err != nil {
			return nil, fmt.Errorf("faulty: command %q: %w", strings.TrimSpace(command), err)
		}
		rules = append(rules, more...)
	}
	if len(rules) > maxRules {
		return nil, fmt.Errorf("faulty: %d rules, more than %d", len(rules), maxRules)
	}
	return rules, nil
}

func parseCommand(name string, words []string) ([]rule, error) {
	switch name {
	case "hang":
		return parseFunctions(rule{action: actionHang}, words)
	case "crash":
		return parseFunctions(rule{action: actionCrash}, words)
	case "return", "delay":
		return parseValue(name, words)
	case "corrupt":
		return parseFunctions(rule{action: actionCorrupt}, append([]string{"C_Sign"}, words...))
	case "sessions":
		return parseSessions(words)
	case "duplicate":
		return parseFunctions(rule{action: actionDuplicate}, append([]string{"C_OpenSession"}, words...))
	}
	return nil, fmt.Errorf("unknown")
}

// parseValue reads what return and delay have before their functions.
func parseValue(name string, words []string) ([]rule, error) {
	if len(words) == 0 {
		return nil, fmt.Errorf("its value is missing")
	}
	if name == "return" {
		code, ok := codes[words[0]]
		if !ok {
			return nil, fmt.Errorf("return value %q is not known", words[0])
		}
		return parseFunctions(rule{action: actionReturn, value: code}, words[1:])
	}
	pause, err := time.ParseDuration(words[0])
	if err != nil || pause < time.Millisecond {
		return nil, fmt.Errorf("%q is not a duration of a millisecond or more", words[0])
	}
	return parseFunctions(rule{action: actionDelay, value: uint64(pause.Milliseconds())}, words[1:])
}

func parseSessions(words []string) ([]rule, error) {
	limit := rule{action: actionLimit, function: functions["C_OpenSession"], calls: -1}
	if len(words) == 2 && words[1] == "stated" {
		limit.action = actionLimitStated
		words = words[:1]
	}
	if len(words) != 1 {
		return nil, fmt.Errorf("want a number of sessions")
	}
	n, err := strconv.ParseUint(words[0], 10, 16)
	if err != nil {
		return nil, fmt.Errorf("want a number of sessions")
	}
	limit.value = n
	return []rule{limit}, nil
}

// parseFunctions makes one rule for each function of a list.
func parseFunctions(one rule, words []string) ([]rule, error) {
	one.calls = -1
	if len(words) == 2 {
		n, err := strconv.ParseUint(words[1], 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number of calls", words[1])
		}
		one.calls = int64(n)
		words = words[:1]
	}
	if len(words) != 1 {
		return nil, fmt.Errorf("want FUNCTIONS [CALLS]")
	}
	var rules []rule
	for _, name := range slices.Compact(strings.Split(words[0], ",")) {
		index, ok := functions[name]
		if !ok {
			return nil, fmt.Errorf("function %q is not watched", name)
		}
		one.function = index
		rules = append(rules, one)
	}
	return rules, nil
}
