package brokerlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Compact runs compact on the closed-off log in dir. kfake removes a partition's old segments before it writes the new
// ones, so a SIGKILL between would lose both: the old ones are kept, as links, until all new ones are there.
func Compact(dir string, compact func()) error {
	kept := keptFolder(dir)
	// Whole at once or not at all.
	building := kept + ".tmp"
	if err := linkAll(filepath.Join(dir, "partitions"), building); err != nil {
		return fmt.Errorf("keep the log while it is compacted: %w", err)
	}
	if err := os.Rename(building, kept); err != nil {
		return fmt.Errorf("keep the log while it is compacted: %w", err)
	}
	compact()
	if err := errors.Join(os.Rename(kept, building), os.RemoveAll(building)); err != nil {
		return fmt.Errorf("drop the log as it was before compaction: %w", err)
	}
	return nil
}

// Restore undoes a compaction that was killed, and tells whether there was one. It is run before Mend.
func Restore(dir string) (bool, error) {
	kept := keptFolder(dir)
	if err := os.RemoveAll(kept + ".tmp"); err != nil {
		return false, err
	}
	if _, err := os.Stat(kept); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	partitions := filepath.Join(dir, "partitions")
	if err := errors.Join(os.RemoveAll(partitions), os.Rename(kept, partitions)); err != nil {
		return false, fmt.Errorf("restore the log as it was before compaction: %w", err)
	}
	return true, nil
}

func keptFolder(dir string) string { return filepath.Join(dir, "before-compaction") }

func linkAll(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		return os.Link(path, filepath.Join(to, rel))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
