// Package cache keeps what is fetched once a machine (the ClickHouse engine, the jars of Kafka) in the user's cache
// directory. A folder is filled aside and renamed into place, under a lock: it is whole or absent, whoever is killed when,
// and two processes that want it at once fetch it once.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/betterdata/webhooks/deploy/local/takeover"
)

const home = "betterdata-webhooks"

// Folder is the cached folder of that name. When it is absent, fill is given an empty folder to fill first.
func Folder(ctx context.Context, name string, fill func(ctx context.Context, folder string) error) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache directory (set XDG_CACHE_HOME or HOME): %w", err)
	}
	root := filepath.Join(base, home)
	folder := filepath.Join(root, name)
	if there, err := exists(folder); there || err != nil {
		return folder, err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("create the cache: %w", err)
	}
	lock, err := takeover.Lock(ctx, folder+".lock")
	if err != nil {
		return "", fmt.Errorf("wait for the cache: %w", err)
	}
	defer lock.Close()
	if there, err := exists(folder); there || err != nil {
		return folder, err
	}
	return folder, fillAside(ctx, folder, fill)
}

// fillAside runs under the folder's lock, so that what lies at the partial path is a dead process's.
func fillAside(ctx context.Context, folder string, fill func(ctx context.Context, folder string) error) error {
	partial := folder + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("remove what an interrupted fetch left: %w", err)
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return fmt.Errorf("create the cache: %w", err)
	}
	if err := fill(ctx, partial); err != nil {
		return errors.Join(err, os.RemoveAll(partial))
	}
	return os.Rename(partial, folder)
}

func exists(folder string) (bool, error) {
	_, err := os.Stat(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
