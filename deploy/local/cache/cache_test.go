package cache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/cache"
)

func write(_ context.Context, folder string) error {
	return os.WriteFile(filepath.Join(folder, "file"), []byte("whole"), 0o600)
}

// inTempCache makes an empty folder the user's cache directory.
func inTempCache(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
}

func TestManyWantItAndItIsFetchedOnce(t *testing.T) {
	inTempCache(t)
	var fills atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			folder, err := cache.Folder(t.Context(), "thing", func(ctx context.Context, folder string) error {
				fills.Add(1)
				return write(ctx, folder)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if body, err := os.ReadFile(filepath.Join(folder, "file")); err != nil || string(body) != "whole" {
				t.Errorf("%q, %v", body, err)
			}
		})
	}
	group.Wait()
	require.EqualValues(t, 1, fills.Load())
}

func TestAFailedOrInterruptedFetchLeavesNothing(t *testing.T) {
	inTempCache(t)
	broken := errors.New("broken")
	_, err := cache.Folder(t.Context(), "thing", func(ctx context.Context, folder string) error {
		return errors.Join(write(ctx, folder), broken)
	})
	require.ErrorIs(t, err, broken)

	var left string
	require.Panics(t, func() {
		_, _ = cache.Folder(t.Context(), "thing", func(ctx context.Context, folder string) error {
			left = filepath.Join(folder, "half")
			require.NoError(t, os.WriteFile(left, nil, 0o600))
			panic("as good as killed")
		})
	})
	require.FileExists(t, left)
	folder, err := cache.Folder(t.Context(), "thing", write)
	require.NoError(t, err)
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}
