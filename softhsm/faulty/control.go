package faulty

import (
	"encoding/binary"
	"fmt"
	"os"
)

// Layout of the control file: struct control of faulty.c, in the machine's byte order.
const (
	maxRules     = 16
	ruleOffset   = 8
	ruleSize     = 24
	callsOffset  = ruleOffset + maxRules*ruleSize
	functionsAll = 68
	controlSize  = callsOffset + functionsAll*8
)

// write replaces the rules. There are none in between, so that none is seen half-written.
func (m Module) write(rules []rule) error {
	file, err := os.OpenFile(m.Control, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("faulty: %w", err)
	}
	defer file.Close()
	head := make([]byte, ruleOffset)
	if _, err := file.ReadAt(head, 0); err != nil {
		return fmt.Errorf("faulty: %w", err)
	}
	order := binary.NativeEndian
	order.PutUint32(head, order.Uint32(head)+1)
	order.PutUint32(head[4:], 0)
	var body []byte
	for _, rule := range rules {
		body = order.AppendUint32(body, rule.function)
		body = order.AppendUint32(body, rule.action)
		body = order.AppendUint64(body, rule.value)
		body = order.AppendUint64(body, uint64(rule.calls))
	}
	for _, part := range []struct {
		data   []byte
		offset int64
	}{{head, 0}, {body, ruleOffset}, {order.AppendUint32(nil, uint32(len(rules))), 4}} {
		if _, err := file.WriteAt(part.data, part.offset); err != nil {
			return fmt.Errorf("faulty: %w", err)
		}
	}
	return nil
}

// calls reads the counter of a function.
func (m Module) calls(function uint32) (int, error) {
	file, err := os.Open(m.Control)
	if err != nil {
		return 0, fmt.Errorf("faulty: %w", err)
	}
	defer file.Close()
	counter := make([]byte, 8)
	if _, err := file.ReadAt(counter, callsOffset+int64(function)*8); err != nil {
		return 0, fmt.Errorf("faulty: %w", err)
	}
	return int(binary.NativeEndian.Uint64(counter)), nil
}
