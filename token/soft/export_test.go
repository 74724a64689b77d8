package soft

// CreateCheaply is Create with the least that Argon2id can cost, for tests that are not about it.
func CreateCheaply(dir, label string, pin []byte) error {
	return create(dir, label, pin, kdfParameters{MemoryKiB: 64, Time: 1, Threads: 1})
}
