package takeover_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/takeover"
)

func TestALockIsHandedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := takeover.Lock(t.Context(), path)
	require.NoError(t, err)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = takeover.Lock(short, path)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	go func() {
		time.Sleep(100 * time.Millisecond) // while the next one waits
		_ = held.Close()
	}()
	next, err := takeover.Lock(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, next.Close())
}

func TestAPortIsHandedOver(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		time.Sleep(100 * time.Millisecond) // while the next one waits
		_ = held.Close()
	}()
	next, err := takeover.Listen(t.Context(), held.Addr().String(), "SOME_ADDR")
	require.NoError(t, err)
	require.NoError(t, next.Close())
}

func TestAnAddressOfAnotherMachineIsRefusedAtOnce(t *testing.T) {
	began := time.Now()
	_, err := takeover.Listen(t.Context(), "192.0.2.1:80", "SOME_ADDR")
	require.ErrorContains(t, err, "SOME_ADDR")
	require.Less(t, time.Since(began), takeover.Patience)
}
