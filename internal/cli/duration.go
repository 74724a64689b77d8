package cli

import "time"

// durationsToText replaces durations in a tree of maps by what one would write in the file ("15s").
func durationsToText(values map[string]any) {
	for key, value := range values {
		switch v := value.(type) {
		case time.Duration:
			values[key] = v.String()
		case map[string]any:
			durationsToText(v)
		}
	}
}
