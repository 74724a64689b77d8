package main

import (
	"maps"
	"sync"
	"sync/atomic"
)

// series remembers what belongs to some labels, so that looking it up costs the path of
// requests neither a lock nor an allocation. Its keys must be few.
type series[K comparable, V any] struct {
	make  func(K) V
	known atomic.Pointer[map[K]V]
	mu    sync.Mutex // held while one is added
}

func newSeries[K comparable, V any](make func(K) V) *series[K, V] {
	s := &series[K, V]{make: make}
	s.known.Store(&map[K]V{})
	return s
}

func (s *series[K, V]) of(key K) V {
	if value, ok := (*s.known.Load())[key]; ok {
		return value
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := *s.known.Load()
	if value, ok := known[key]; ok {
		return value
	}
	next := maps.Clone(known)
	value := s.make(key)
	next[key] = value
	s.known.Store(&next)
	return value
}
