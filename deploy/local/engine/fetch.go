package engine

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"time"

	"github.com/betterdata/webhooks/deploy/local/cache"
)

// libraryVersion is the version of the npm packages @chdb/lib-*: ClickHouse 26.7 as a shared library.
const libraryVersion = "26.7.3-stable.1"

// libraries has npm's package and the library's file name for each supported platform (GOOS/GOARCH).
var libraries = map[string]struct{ pkg, file string }{
	"linux/amd64":  {"@chdb/lib-linux-x64-gnu", "libchdb.so"},
	"linux/arm64":  {"@chdb/lib-linux-arm64-gnu", "libchdb.so"},
	"darwin/amd64": {"@chdb/lib-darwin-x64", "libchdb.so"},
	"darwin/arm64": {"@chdb/lib-darwin-arm64", "libchdb.so"},
}

// library is the path of the engine's shared library, fetched from npm the first time. npm checks what it downloads
// against the registry's integrity hash.
func library(ctx context.Context, progress io.Writer) (string, error) {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	lib, ok := libraries[platform]
	if !ok {
		return "", fmt.Errorf("no ClickHouse engine for %s: put a clickhouse program on PATH or set CLICKHOUSE_URL", platform)
	}
	name := "clickhouse-" + libraryVersion + "-" + path.Base(lib.pkg)
	folder, err := cache.Folder(ctx, name, func(ctx context.Context, folder string) error {
		return fetch(ctx, lib.pkg+"@"+libraryVersion, lib.file, folder, progress)
	})
	if err != nil {
		return "", fmt.Errorf("fetch the ClickHouse engine: %w", err)
	}
	return filepath.Join(folder, lib.file), nil
}

// fetch unpacks one file of an npm package into folder.
func fetch(ctx context.Context, spec, file, folder string, progress io.Writer) error {
	if _, err := exec.LookPath("npm"); err != nil {
		return errors.New("npm is missing: install Node.js, put a clickhouse program on PATH, or set CLICKHOUSE_URL")
	}
	done := printProgress(progress, fmt.Sprintf("Fetching ClickHouse (%s, about 170 MB, once) ", spec))
	defer done()
	pack := exec.CommandContext(ctx, "npm", "pack", "--silent", "--pack-destination", folder, spec)
	// In a folder of its own npm finds no project settings that could interfere.
	pack.Dir = folder
	pack.Cancel = func() error { return pack.Process.Signal(os.Interrupt) }
	pack.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	pack.Stderr = &stderr
	if err := pack.Run(); err != nil {
		return fmt.Errorf("npm pack %s: %w: %s", spec, err, bytes.TrimSpace(stderr.Bytes()))
	}
	archives, err := filepath.Glob(filepath.Join(folder, "*.tgz"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("npm pack %s left %d archives, want one", spec, len(archives))
	}
	if err := unpack(archives[0], "package/"+file, filepath.Join(folder, file)); err != nil {
		return fmt.Errorf("unpack %s: %w", archives[0], err)
	}
	return os.Remove(archives[0])
}

func unpack(archive, member, target string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s is not in it", member)
		}
		if err != nil {
			return err
		}
		if h.Name == member {
			return writeFile(target, r)
		}
	}
}

func writeFile(target string, r io.Reader) error {
	out, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}

// printProgress writes one line that grows by a dot every two seconds, and ends it when the returned function is called.
func printProgress(w io.Writer, text string) (done func()) {
	began := time.Now()
	fmt.Fprint(w, text)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				fmt.Fprint(w, ".")
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		fmt.Fprintf(w, " %.0f s\n", time.Since(began).Seconds())
	}
}
