package worker

import "testing"

// A token that signs one after the other has calls wait, each for those that began before it. None of them hangs.
func TestCallsThatWaitForOthersAreNotOverdue(t *testing.T) {
	w := newWatch()
	var calls []uint64
	for range 16 {
		calls = append(calls, w.begin("signing"))
	}
	for i, number := range calls {
		for range watchRounds - 1 {
			if what := w.overdue(); what != "" {
				t.Fatalf("overdue with %d calls done: %s", i, what)
			}
		}
		w.end(number)
	}
}

func TestACallThatHangsIsOverdueWhateverElseGoesOn(t *testing.T) {
	w := newWatch()
	before := w.begin("listing keys")
	w.begin("signing")
	rounds := 0
	for what := ""; what == ""; rounds++ {
		if rounds == watchRounds/2 {
			w.end(before)
		}
		w.end(w.begin("logging in"))
		if what = w.overdue(); what != "" && what != "signing" {
			t.Fatalf("overdue: %s", what)
		}
		if rounds > 2*watchRounds {
			t.Fatal("it is never overdue")
		}
	}
	if rounds <= watchRounds {
		t.Errorf("overdue after %d rounds", rounds)
	}
}
