package tpm

// Authorisation is what the token at config derives from the PIN.
func Authorisation(config Config, pin []byte) ([]byte, error) {
	m, err := readManifest(config.Directory)
	if err != nil {
		return nil, err
	}
	return m.authorisation(pin), nil
}

// KeysDir is where the key files in force are.
func KeysDir(config Config) (string, error) {
	m, err := readManifest(config.Directory)
	if err != nil {
		return "", err
	}
	return m.keysDir(config.Directory), nil
}

// DecodeManifest and DecodeKeyFile are what reads the files, for fuzzing.
func DecodeManifest(data []byte) error {
	_, err := decodeManifest(data)
	return err
}

func DecodeKeyFile(data []byte, serial string, id []byte) error {
	_, err := decodeKeyFile(data, serial, 0, id)
	return err
}
