// Package takeover is how a process follows another one on the same machine: it waits a bounded time for the ports and
// lock files that a predecessor, stopped or killed a moment ago, has not given back yet. It never removes a lock of
// somebody who is alive.
package takeover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Patience is how long a start waits for its predecessor.
const Patience = 10 * time.Second

const pollInterval = 50 * time.Millisecond

// Lock takes the exclusive lock on the file at path, creating it, and waits until ctx ends for another holder to let go.
// The lock belongs to the open file: it ends when every process that inherited it has closed it or died.
func Lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: held by another process: %w", path, ctx.Err()), f.Close())
		case <-time.After(pollInterval):
		}
	}
}

// LockFolder creates the folder and takes its lock within Patience. setting is the setting that moves the folder, for
// the error.
func LockFolder(ctx context.Context, folder, setting string) (*os.File, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w: set %s to a folder that can be written", folder, err, setting)
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	f, err := Lock(ctx, folder+"/lock")
	if err != nil {
		return nil, fmt.Errorf("%s is in use: stop the other process or set %s to another folder: %w", folder, setting, err)
	}
	return f, nil
}

// Listen opens addr and waits up to Patience while it is taken. setting is the name of the setting that gave addr, for
// the error. Port 0 picks a free port.
func Listen(ctx context.Context, addr, setting string) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err == nil {
			return ln, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen on %s: %w: set %s to an address of this machine", addr, err, setting)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s is taken by another process: stop it or set %s (port 0 picks a free one)", addr, setting)
		case <-time.After(pollInterval):
		}
	}
}

// FreeAddr is an address of host that is free now. Its port is below the range that outgoing connections use, so that it
// will still be free in a moment, and when a killed server starts again.
func FreeAddr(host string) (string, error) {
	for range 100 {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(20000+rand.IntN(10000))))
		if err == nil {
			return ln.Addr().String(), ln.Close()
		}
	}
	return "", fmt.Errorf("no free port between 20000 and 30000 on %s", host)
}
