package wire

import "github.com/google/uuid"

// envelopeReader reads the object around every message. A fault in one field
// doesn't stop it, because the answer to a bad request still carries its id.
type envelopeReader struct {
	session *uuid.UUID
	id      func(*cursor) error
	fault   error
}

func newEnvelopeReader(session *uuid.UUID, id func(*cursor) error) *envelopeReader {
	return &envelopeReader{session: session, id: id}
}

// read walks over a validated text and returns the first fault.
func (e *envelopeReader) read(text []byte, field string, body func(*cursor) error) error {
	c := &cursor{text: text}
	_, err := c.fields(record{
		{"session_id", true, e.isolated(set(e.session, (*cursor).uuid))},
		{"request_id", true, e.isolated(e.id)},
		{field, true, e.isolated(body)},
	})
	if e.fault != nil {
		return e.fault
	}
	return err
}

// isolated reads one value with a cursor of its own and notes a fault.
func (e *envelopeReader) isolated(read func(*cursor) error) func(*cursor) error {
	return func(c *cursor) error {
		if err := read(&cursor{text: c.raw()}); err != nil && e.fault == nil {
			e.fault = err
		}
		return nil
	}
}
