package signer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"chancery/tunnel/wire"
	"chancery/users"
)

// sealedStore is a store whose seal can be shut.
type sealedStore struct {
	users.Store
	shut atomic.Bool
}

func (s *sealedStore) Snapshot(ctx context.Context) (*users.Snapshot, error) {
	open, err := s.Store.Snapshot(ctx)
	if err != nil || !s.shut.Load() {
		return open, err
	}
	why := fmt.Errorf("%w: the TPM is gone", users.ErrSealClosed)
	return users.NewClosedSnapshot(open.Revision, open.Users(), open.Tokens(), open.Keys(), why), nil
}

func TestNothingIsServedWhileTheSealIsClosed(t *testing.T) {
	var store *sealedStore
	w := newWorld(t, func(_ *world, c *Config) {
		store = &sealedStore{Store: c.Store}
		c.Store = store
	})
	alice := w.unlockedClient("p256")
	if err := w.server.StoreReadable(t.Context()); err != nil {
		t.Error(err)
	}
	store.shut.Store(true)
	w.change(func(*fakeStore) {})
	w.eventually("the seal to be seen shut", func() bool { return w.server.Status().Seal != "" })
	for name, request := range map[string]wire.RequestBody{
		"sign": signRequest("p256"), "unlock": unlockRequest("p256", passphrase), "list": &wire.ListKeys{}, "get": &wire.GetKey{Key: "p256"},
		"a key that is not there": unlockRequest("none", passphrase),
	} {
		if got := alice.refused(request, wire.CodeSealClosed); got.Retry != wire.RetryLater {
			t.Errorf("%s: advice %+v", name, got)
		}
	}
	if err := w.server.StoreReadable(t.Context()); !errors.Is(err, users.ErrSealClosed) {
		t.Errorf("ready with a closed seal: %v", err)
	}
	w.awaitLog("the seal over the store does not open")
	store.shut.Store(false)
	w.eventually("the seal to open", func() bool { return w.server.Status().Seal == "" })
	want[*wire.UnlockReply](alice, alice.call(unlockRequest("p256", passphrase)))
	want[*wire.SignReply](alice, alice.call(signRequest("p256")))
}
