// Package observetest holds a program's metrics against their documentation.
package observetest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// row is a metric in the tables of docs/observability.md: name, type, labels.
var row = regexp.MustCompile("(?m)^\\| `(chancery_[a-z_]+)` \\| (counter|gauge|histogram) \\| ([^|]*)\\|")

// Metric is what the documentation says of one.
type Metric struct {
	Type   string
	Labels []string // sorted
}

// Documented returns the metrics of docs/observability.md by name. Root is the project's directory.
func Documented(t testing.TB, root string) map[string]Metric {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]Metric)
	for _, match := range row.FindAllStringSubmatch(string(text), -1) {
		labels := regexp.MustCompile("[a-z_]+").FindAllString(match[3], -1)
		slices.Sort(labels)
		found[match[1]] = Metric{match[2], labels}
	}
	return found
}

// Compare fails unless the registry, in which every metric must have a sample, has exactly
// the documented metrics with one of the prefixes, of the same type and with the same labels.
func Compare(t testing.TB, root string, registry *prometheus.Registry, prefixes ...string) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	documented := Documented(t, root)
	for name := range documented {
		if !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			delete(documented, name)
		}
	}
	for _, family := range families {
		name := family.GetName()
		if !strings.HasPrefix(name, "chancery_") {
			continue
		}
		want, ok := documented[name]
		if !ok {
			t.Errorf("%s is not in docs/observability.md", name)
			continue
		}
		delete(documented, name)
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
		slices.Sort(labels)
		if got := strings.ToLower(family.GetType().String()); got != want.Type || !slices.Equal(labels, want.Labels) {
			t.Errorf("%s is a %s with labels %q; docs/observability.md says %s with %q", name, got, labels, want.Type, want.Labels)
		}
	}
	for name := range documented {
		t.Errorf("docs/observability.md has %s, which does not exist", name)
	}
}
