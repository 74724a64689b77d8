package soft

// CreateCheaply is Create with the least that Argon2id can cost, for tests that are not about it.
func CreateCheaply(dir, label string, pin []byte) error {
	return create(dir, label, pin, kdfParameters{MemoryKiB: 64, Time: 1, Threads: 1})
}

// DecodeTokenFile and DecodeKeyFile are what reads the files, for fuzzing.
func DecodeTokenFile(data []byte) error {
	_, err := decodeTokenFile(data)
	return err
}

func DecodeKeyFile(data, id []byte) error {
	_, _, err := decodeKeyFile(data, id)
	return err
}

// OpenTokenFile tries a PIN on a token file.
func OpenTokenFile(data, pin []byte) error {
	file, err := decodeTokenFile(data)
	if err != nil {
		return err
	}
	_, err = file.open(pin)
	return err
}
