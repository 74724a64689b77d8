package worker

import "testing"

// A token that signs one after the other has calls wait, in whatever order it takes them. None of them hangs.
func TestCallsThatWaitForOthersAreNotOverdue(t *testing.T) {
	w := newWatch()
	var calls []uint64
	for range 16 {
		calls = append(calls, w.begin("signing"))
	}
	for i := range calls {
		for range watchRounds - 1 {
			if what := w.overdue(); what != "" {
				t.Fatalf("overdue with %d calls done: %s", i, what)
			}
		}
		w.end(calls[(i+5)%len(calls)])
	}
}

func TestACallThatHangsIsOverdueWhateverElseGoesOn(t *testing.T) {
	for name, each := range map[string]int{"nothing": 0, "little": 1, "much": 100} {
		w := newWatch()
		w.begin("signing")
		rounds := 0
		for what := ""; what == ""; rounds++ {
			for range each {
				w.end(w.begin("listing keys"))
			}
			if what = w.overdue(); what != "" && what != "signing" {
				t.Fatalf("%s: overdue: %s", name, what)
			}
			if rounds > 2*watchRounds {
				t.Fatalf("%s: it is never overdue", name)
			}
		}
		if rounds <= watchRounds {
			t.Errorf("%s: overdue after %d rounds", name, rounds)
		}
	}
}
