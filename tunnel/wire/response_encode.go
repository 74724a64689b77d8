package wire

import "strconv"

// AppendResponse appends the response's JSON to dst, without a frame, in the
// field order of version 2. Without extended, what version 2 does not know is
// left out and every Error has the reason "internal"; keys and signatures whose
// algorithm it does not know must not be sent at all.
func AppendResponse(dst []byte, r *Response, extended bool) []byte {
	dst = appendEnvelope(dst, r.Session, r.ID, "response")
	dst = r.Body.appendReply(dst, extended)
	return append(dst, '}')
}

func (w *WhoAmIReply) appendReply(dst []byte, _ bool) []byte {
	dst = append(dst, `{"who_am_i":{"user":`...)
	dst = appendString(dst, w.User)
	return append(dst, `}}`...)
}

func (l *ListKeysReply) appendReply(dst []byte, extended bool) []byte {
	dst = append(dst, `{"list_keys":{"keys":`...)
	dst = appendList(dst, l.Keys, keyAppender(extended))
	return append(dst, `}}`...)
}

func (g *GetKeyReply) appendReply(dst []byte, extended bool) []byte {
	dst = append(dst, `{"get_key":{"key":`...)
	dst = keyAppender(extended)(dst, g.Key)
	return append(dst, `}}`...)
}

func (*UnlockReply) appendReply(dst []byte, _ bool) []byte {
	return append(dst, `{"unlock":{}}`...)
}

func (s *SignReply) appendReply(dst []byte, _ bool) []byte {
	dst = append(dst, `{"sign":{"signature":`...)
	dst = appendSignature(dst, s.Signature)
	return append(dst, `}}`...)
}

// appendReply uses version 2's tag, which is not the request's.
func (s *SignAllReply) appendReply(dst []byte, _ bool) []byte {
	dst = append(dst, `{"sign_prehashed":{"signatures":`...)
	dst = appendList(dst, s.Signatures, appendSignature)
	return append(dst, `}}`...)
}

// appendReply writes a bare string: version 2 clients cannot decode an object here.
func (*UnsupportedReply) appendReply(dst []byte, _ bool) []byte {
	return append(dst, `"unsupported"`...)
}

func (e *Error) appendReply(dst []byte, extended bool) []byte {
	dst = append(dst, `{"error":{"reason":"internal"`...)
	if extended {
		dst = append(dst, `,"code":`...)
		dst = appendString(dst, string(e.Code))
		dst = append(dst, `,"message":`...)
		dst = appendString(dst, e.Message)
		dst = append(dst, `,"retry":`...)
		dst = appendString(dst, string(e.Retry))
		dst = append(dst, `,"retry_after_ms":`...)
		dst = strconv.AppendInt(dst, max(0, e.RetryAfter.Milliseconds()), 10)
	}
	return append(dst, `}}`...)
}

func keyAppender(extended bool) func([]byte, Key) []byte {
	return func(dst []byte, k Key) []byte {
		dst = append(dst, `{"name":`...)
		dst = appendString(dst, k.Name)
		dst = append(dst, `,"key_algorithm":`...)
		dst = appendString(dst, string(k.Algorithm))
		dst = append(dst, `,"handle":`...)
		dst = appendString(dst, k.Handle)
		dst = append(dst, `,"public_key":`...)
		dst = appendString(dst, k.PublicKey)
		dst = append(dst, `,"certificates":`...)
		dst = appendList(dst, k.Certificates, appendCertificate)
		if extended && k.Hardware != nil {
			dst = append(dst, `,"hardware":`...)
			dst = strconv.AppendBool(dst, *k.Hardware)
		}
		return append(dst, '}')
	}
}

func appendCertificate(dst []byte, c Certificate) []byte {
	dst = append(dst, `{"certificate":`...)
	dst = appendString(dst, c.Text)
	dst = append(dst, `,"certificate_type":`...)
	dst = appendString(dst, string(c.Type))
	dst = append(dst, `,"fingerprint":`...)
	dst = appendString(dst, c.Fingerprint)
	dst = append(dst, `,"name":`...)
	dst = appendString(dst, c.Name)
	return append(dst, '}')
}

func appendSignature(dst []byte, s Signature) []byte {
	dst = append(dst, `{"signature":{`...)
	dst = appendString(dst, string(s.Tag))
	dst = append(dst, ':')
	dst = appendBase64(dst, s.Bytes)
	dst = append(dst, '}')
	if s.Digest != "" {
		dst = append(dst, `,"digest":`...)
		dst = appendString(dst, string(s.Digest))
		dst = append(dst, `,"hash":`...)
		dst = appendString(dst, s.Hash)
	}
	return append(dst, '}')
}
