package bridge

import "sync"

const (
	// largeBuffer is a TLS record's largest payload: no read returns more.
	largeBuffer = 16 << 10
	// smallBuffer holds most requests and answers.
	smallBuffer = 2 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// buffer is what one direction of a pair reads into: small while messages are,
// so that the many pairs that are idle cost little, and large while much comes.
type buffer struct {
	small [smallBuffer]byte
	large *[largeBuffer]byte
}

// next returns where to read into after a read of so many bytes, which have
// been passed on.
func (b *buffer) next(last int) []byte {
	if last < smallBuffer {
		b.release()
		return b.small[:]
	}
	if b.large == nil {
		b.large = largeBuffers.Get().(*[largeBuffer]byte)
	}
	return b.large[:]
}

// release gives the large buffer back.
func (b *buffer) release() {
	if b.large != nil {
		largeBuffers.Put(b.large)
		b.large = nil
	}
}
