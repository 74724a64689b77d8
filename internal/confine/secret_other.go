//go:build !linux

package confine

func allocate(length int) (region []byte, mapped bool, notices []Notice) {
	return make([]byte, max(length, 1)), false, []Notice{{What: "secrets are in ordinary memory", Why: "locking it takes Linux"}}
}

func release([]byte) {}
