package tokentest

import (
	"crypto/sha256"
	"testing"
)

// BenchmarkSign measures signatures of each algorithm, one at a time and many at once.
func BenchmarkSign(b *testing.B, driver Driver) {
	fixture := openLoggedIn(b, driver)
	message := sha256.Sum256([]byte("benchmark"))
	for _, a := range info(b, fixture.Token).Algorithms {
		key := generate(b, fixture.Token, string(a), a)
		way := cases(a)[0]
		input := way.input(message[:])
		sign := func(b *testing.B) {
			if _, err := key.Sign(b.Context(), input, way.opts); err != nil {
				b.Error(err)
			}
		}
		b.Run(string(a)+"/sequential", func(b *testing.B) {
			for b.Loop() {
				sign(b)
			}
		})
		b.Run(string(a)+"/parallel", func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					sign(b)
				}
			})
		})
	}
}
