// Package grafana holds the dashboard against the metrics that exist.
package grafana

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chancery/internal/observe/observetest"
)

type dashboard struct {
	Title  string
	Panels []panel
}

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr string }
}

func load(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile("chancery.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

var (
	metricName = regexp.MustCompile(`\b(?:chancery|go|process)_[a-z_]+`)
	suffix     = regexp.MustCompile(`_(bucket|sum|count)$`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(?:=|!=|=~|!~)\s*"`)
	grouping   = regexp.MustCompile(`by \(([^)]*)\)`)
)

// others are metrics of the runtime that the dashboard may use.
var others = []string{"go_goroutines", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"}

// TestEachMetricExists looks up each metric and label of the queries in the documentation,
// which the programs' own tests hold against their registries.
func TestEachMetricExists(t *testing.T) {
	documented := observetest.Documented(t, "../..")
	used := make(map[string]bool)
	for _, p := range load(t).Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			labels := []string{"instance", "le", "__name__"}
			for _, name := range metricName.FindAllString(target.Expr, -1) {
				if slices.Contains(others, name) {
					continue
				}
				metric, ok := documented[name]
				if base := suffix.ReplaceAllString(name, ""); !ok && documented[base].Type == "histogram" {
					name, metric, ok = base, documented[base], true
				}
				if !ok {
					t.Errorf("panel %q asks for %s, which does not exist", p.Title, name)
				}
				used[name] = true
				labels = append(labels, metric.Labels...)
			}
			for _, label := range labelsIn(target.Expr) {
				if !slices.Contains(labels, label) {
					t.Errorf("panel %q asks for the label %q, which its metrics do not have: %s", p.Title, label, target.Expr)
				}
			}
		}
	}
	for name := range documented {
		if !used[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
}

func labelsIn(query string) (labels []string) {
	for _, match := range matcher.FindAllStringSubmatch(query, -1) {
		labels = append(labels, match[1])
	}
	for _, match := range grouping.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(match[1], ",") {
			labels = append(labels, strings.TrimSpace(label))
		}
	}
	return labels
}

func TestPanelsDoNotOverlap(t *testing.T) {
	taken := make(map[[2]int]string)
	ids := make(map[int]bool)
	for _, p := range load(t).Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has another's id %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		if g := p.GridPos; g.X < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("panel %q does not fit: %+v", p.Title, g)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				place := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, ok := taken[place]; ok {
					t.Fatalf("panel %q covers %q", p.Title, other)
				}
				taken[place] = p.Title
			}
		}
	}
}
