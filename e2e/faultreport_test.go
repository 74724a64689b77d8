package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

const faultsDocument = "../docs/faults.md"

// The marks between which the table of docs/faults.md stands.
const tableBegins, tableEnds = "<!-- table -->\n", "<!-- end of table -->\n"

// writeFaults puts the table of what was measured in the place of the one in docs/faults.md.
func writeFaults(t *testing.T, all []measurement) {
	t.Helper()
	before, rest, found := strings.Cut(readFaults(t), tableBegins)
	_, after, closed := strings.Cut(rest, tableEnds)
	if !found || !closed {
		t.Fatalf("%s has no place for the table", faultsDocument)
	}
	table := "| fault | what is done about it | no signature for | next one after the token's recovery | slowest request | failed requests | token opened |\n|---|---|---|---|---|---|---|\n"
	for _, m := range all {
		table += fmt.Sprintf("%s %s | %s | %s | %d of %d | %s |\n", m.row(), m.silence.Round(10*time.Millisecond), m.after.Round(10*time.Millisecond),
			m.slowest.Round(10*time.Millisecond), m.failed, m.asked, times(m.openings))
	}
	if err := os.WriteFile(faultsDocument, []byte(before+tableBegins+table+tableEnds+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// row begins a fault's row of the table.
func (f fault) row() string { return fmt.Sprintf("| %s | %s |", f.name, f.answer) }

func times(n int) string {
	switch n {
	case 0:
		return "no"
	case 1:
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func readFaults(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(faultsDocument)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestFaultsAreDocumented holds docs/faults.md to the faults that are tested.
func TestFaultsAreDocumented(t *testing.T) {
	document := readFaults(t)
	for _, f := range faults {
		if !strings.Contains(document, f.row()) {
			t.Errorf("%s has no row that begins with %s; CHANCERY_WRITE_FAULTS=1 go test ./e2e -run TestTokenFaults writes it", faultsDocument, f.row())
		}
	}
}
