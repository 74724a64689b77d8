//go:build !linux

package confine

// Apply restricts nothing on this system, which its one notice says.
func Apply(Rules) []Notice {
	return []Notice{{What: "the whole process is unconfined", Why: "this takes Linux"}}
}
