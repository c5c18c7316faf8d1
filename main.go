// Command webhooks is the whole system in one program: each service is a subcommand, and `webhooks run` is all of them on
// one machine. This file reads the command line; services.go puts a service together; run.go adds what one machine needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/betterdata/webhooks/deploy/local/engine"
	"github.com/betterdata/webhooks/deploy/local/receiver"
	"github.com/betterdata/webhooks/deploy/local/sender"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/lifecycle"
	"github.com/betterdata/webhooks/internal/settings"
)

// Exit codes. A second signal ends the process with 128 and the signal's number.
const (
	exitOK     = 0
	exitFailed = 1
	// exitRefused says that the process never began: a setting is wrong or missing, or what it names cannot be used.
	exitRefused = 2
)

func main() {
	// The embedded ClickHouse is this program again, as a child.
	if len(os.Args) > 1 && os.Args[1] == engine.Command {
		os.Exit(engine.Main(os.Args[2:]))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	cli, command, err := settings.Parse(args, stdout)
	if errors.Is(err, settings.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "webhooks: %v\n", err)
		return exitRefused
	}
	ctx, stop := lifecycle.OnSignal(context.Background(), os.Exit)
	defer stop()
	switch command {
	case "run":
		err = runAll(ctx, cli.Run, stdout, stderr)
	case "ingest":
		err = runIngest(ctx, cli.Ingest, stderr)
	case "processor":
		err = runProcessor(ctx, cli.Processor, stderr)
	case "deliverer":
		err = runDeliverer(ctx, cli.Deliverer, stderr)
	case "listen":
		err = listen(ctx, cli.Listen, stdout)
	case "send stripe":
		c := cli.Send.Stripe
		err = sender.Stripe(ctx, sender.Config{
			Files: c.Files, URL: c.URL, Secret: string(c.Secret), DataDir: c.DataDir, Org: c.Org, NewIDs: c.NewIDs, Type: c.Type,
		}, stdout)
	case "dead-letters list":
		err = listDeadLetters(ctx, cli.DeadLetters.List, stdout, stderr)
	case "dead-letters replay":
		err = replayDeadLetters(ctx, cli.DeadLetters.Replay, stdout, stderr)
	case "version":
		fmt.Fprintln(stdout, version())
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		// Told to stop before it had begun.
		return exitOK
	}
	return exitCode(command, err, stderr)
}

// exitCode tells the error, in one line.
func exitCode(command string, err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "webhooks %s: %s\n", command, strings.ReplaceAll(err.Error(), "\n", "; "))
	if _, refused := errors.AsType[*refusal](err); refused || errors.Is(err, kafka.ErrPartitions) {
		return exitRefused
	}
	return exitFailed
}

func listen(ctx context.Context, c settings.Listen, stdout io.Writer) error {
	cfg := receiver.Config{
		Addr: string(c.Addr), Answer: c.Answer, ForwardTo: c.ForwardTo, Tolerance: time.Duration(c.Tolerance),
		Org: c.Org, Types: c.Types, API: string(c.API), Key: string(c.Key), DataDir: c.DataDir,
	}
	if c.Secret != "" {
		cfg.Secrets = c.Secret.List()
	}
	return receiver.Listen(ctx, cfg, stdout)
}

// refusal is why a service could not begin.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// refuse marks an error of putting a service together; nil stays nil.
func refuse(err error) error {
	if err == nil {
		return nil
	}
	return &refusal{err}
}

// newLogger writes to standard error, where a service's log belongs.
func newLogger(p settings.Process, w io.Writer) *slog.Logger {
	var level slog.Level
	// The names were checked when the settings were read.
	_ = level.UnmarshalText([]byte(p.LogLevel))
	options := &slog.HandlerOptions{Level: level}
	if p.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// version is the module's, or that of the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "webhooks (unknown version)"
	}
	text := "webhooks " + info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				text += " of " + t.UTC().Format(time.DateOnly)
			}
		}
	}
	return text + " (" + info.GoVersion + ")"
}
