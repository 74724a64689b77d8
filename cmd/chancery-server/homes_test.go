package main

import (
	"slices"
	"testing"
	"time"

	"chancery/token/guard"
	"chancery/token/replica"
	"chancery/users"
)

// TestACallToReplicasEndsBeforeItsProcess looks that a token that hangs is left out before the daemon gives the whole process up.
func TestACallToReplicasEndsBeforeItsProcess(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Second, 3 * time.Second, 10 * time.Second, time.Minute} {
		times := tokensConfig{CallTimeout: limit}.replicaTimes()
		longest := times.AwaitMember + max(times.SignTimeout, times.CallTimeout)
		if limit > 0 && longest >= limit {
			t.Errorf("call_timeout %s: a call takes up to %s", limit, longest)
		}
		if times.SignTimeout <= 0 || times.SignTimeout > replica.DefaultSignTimeout || times.AwaitMember > replica.DefaultAwaitMember {
			t.Errorf("call_timeout %s: %+v", limit, times)
		}
	}
	if times := (tokensConfig{CallTimeout: 10 * time.Second}).replicaTimes(); times.AwaitMember != replica.DefaultAwaitMember {
		t.Errorf("the default limit shortens the replica's times: %+v", times)
	}
}

func TestAProcessMayWriteWhatEachOfItsTokensNeeds(t *testing.T) {
	c := tokensConfig{Writable: []string{"/srv"}, TPM: "/dev/tpmrm0"}
	primary := users.Token{Driver: driverSoft, Replicas: []users.Replica{{Driver: driverTPM}, {Driver: driverTPM}}}
	if got := c.writable(primary); !slices.Equal(got, []string{"/dev/tpmrm0", "/srv"}) {
		t.Errorf("writable %q", got)
	}
}

func TestCommandsTakeFewSessionsOfEachToken(t *testing.T) {
	registered := users.Token{MaxSessions: 64, Replicas: []users.Replica{{MaxSessions: 64}}}
	few := withFewSessions(registered, 2)
	if few.MaxSessions != 2 || few.Replicas[0].MaxSessions != 2 || registered.Replicas[0].MaxSessions != 64 {
		t.Errorf("%+v of %+v", few, registered)
	}
}

// TestAProcessMayWriteWhatItsOwnTokensRejected and not what others have: a module could have a wrong PIN sent to them again.
func TestAProcessMayWriteWhatItsOwnTokensRejected(t *testing.T) {
	c := defaultConfig()
	c.State.Directory = t.TempDir()
	memory := guard.New(c.pins())
	var own []string
	for _, serial := range []string{"1", "2"} {
		directory, err := memory.Prepare(t.Context(), serial)
		if err != nil {
			t.Fatal(err)
		}
		own = append(own, directory)
	}
	if _, err := memory.Prepare(t.Context(), "another's"); err != nil {
		t.Fatal(err)
	}
	told, err := c.custodyOf(t.Context(), users.Token{Driver: driverSoft, Serial: "1", Replicas: []users.Replica{{Driver: driverSoft, Serial: "2"}}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told.Write, own) {
		t.Errorf("it may write %q, and not %q alone", told.Write, own)
	}
}
