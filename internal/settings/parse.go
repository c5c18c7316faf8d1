package settings

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/betterdata/webhooks/schemas"
)

// ErrHelp says that the help was asked for and written.
var ErrHelp = errors.New("help was written")

// Parse reads the command line and the environment. command is the words of the chosen command, "send stripe". Help goes
// to out. Any other error is one line that names each setting that is wrong, and why.
func Parse(args []string, out io.Writer) (cli *CLI, command string, err error) {
	cli = &CLI{}
	if len(args) == 0 {
		return nil, "", errors.New("say what to run: run, ingest, processor, deliverer, listen, send stripe, dead-letters list, dead-letters replay or version; see webhooks --help")
	}
	helped := false
	parser, err := kong.New(cli, kong.Name("webhooks"),
		kong.Description("Better Data Webhooks: both directions of webhook traffic on one log."),
		kong.Writers(out, out), kong.Exit(func(int) { helped = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		variables(args[0]), kong.ValueFormatter(describe(args[0])), kong.WithBeforeReset(refuseEmpty))
	if err != nil {
		return nil, "", fmt.Errorf("BUG: the command line does not build: %w", err)
	}
	ctx, err := parser.Parse(args)
	if helped {
		return nil, "", ErrHelp
	}
	if err != nil {
		return nil, "", errors.New(oneLine(err.Error()))
	}
	words := commandWords(ctx)
	var problems []string
	flags := selectedFlags(ctx)
	for _, f := range flags {
		problems = append(problems, takeFile(f, flags)...)
	}
	for _, f := range flags {
		if reason := f.Tag.Get("must"); reason != "" && words != "run" && f.Target.IsZero() {
			problems = append(problems, fmt.Sprintf("%s is required: %s", names(f), reason))
		}
	}
	problems = append(problems, bounds(ctx)...)
	if len(problems) > 0 {
		return nil, "", errors.New(strings.Join(problems, "; "))
	}
	return cli, words, nil
}

// variables are the defaults that differ by command: what runs on one machine listens on it alone, and may deliver to it.
func variables(command string) kong.Vars {
	if command == "run" {
		return kong.Vars{"host": "127.0.0.1", "cidrs": "127.0.0.0/8,::1/128"}
	}
	return kong.Vars{"host": "", "cidrs": ""}
}

// describe writes a setting's line of help: what it is, whether it can be left out, its default, its variable.
func describe(command string) kong.HelpValueFormatter {
	return func(v *kong.Value) string {
		text := v.Help
		switch {
		case command == "run" && v.Tag.Get("run") != "":
			text += " " + v.Tag.Get("run")
		case v.Tag.Get("must") != "":
			text += " Required."
		case v.HasDefault && v.Default != "":
			text += " Default " + v.Default + "."
		}
		if len(v.Tag.Envs) > 0 {
			text += " [" + v.Tag.Envs[0] + "]"
		}
		return text
	}
}

// refuseEmpty is kong's hook before values are read: a variable that is set to nothing is a mistake, not a default.
func refuseEmpty(ctx *kong.Context) error {
	var empty []string
	for _, p := range ctx.Path {
		if p.Flag != nil && p.Flag.Name == "help" {
			return nil
		}
		if p.Flag != nil && isEmpty(ctx.FlagValue(p.Flag)) {
			empty = append(empty, "--"+p.Flag.Name)
		}
	}
	for _, f := range selectedFlags(ctx) {
		for _, env := range f.Envs {
			if value, set := os.LookupEnv(env); set && strings.TrimSpace(value) == "" {
				empty = append(empty, env)
			}
		}
	}
	if len(empty) > 0 {
		return fmt.Errorf("%s: set but empty; leave it out or give it a value", strings.Join(empty, ", "))
	}
	return nil
}

func isEmpty(value any) bool {
	v := reflect.ValueOf(value)
	switch v.Kind() {
	case reflect.String, reflect.Slice:
		return v.Len() == 0
	default:
		return false
	}
}

// takeFile fills a secret from its -file twin.
func takeFile(f *kong.Flag, all []*kong.Flag) []string {
	if !f.Tag.Has("secret") {
		return nil
	}
	var path string
	for _, twin := range all {
		if twin.Name == f.Name+"-file" {
			path = twin.Target.String()
		}
	}
	if path == "" {
		return nil
	}
	if !f.Target.IsZero() {
		return []string{fmt.Sprintf("%s and its file are both set: leave one out", names(f))}
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return []string{fmt.Sprintf("%s_FILE: %v", f.Envs[0], err)}
	}
	text := strings.TrimRight(string(body), "\r\n")
	if text == "" {
		return []string{fmt.Sprintf("%s_FILE: %s is empty", f.Envs[0], path)}
	}
	f.Target.SetString(text)
	return nil
}

// bounds checks every value, wherever it came from; kong itself checks only what stood on the command line.
func bounds(ctx *kong.Context) (problems []string) {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	for _, f := range selectedFlags(ctx) {
		if v, ok := f.Target.Interface().(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				problems = append(problems, names(f)+": "+err.Error())
			}
		}
		switch v := f.Target.Addr().Interface().(type) {
		case *int:
			check(*v > 0, "%s must be above 0", names(f))
			if f.Name == "max-body-bytes" {
				check(*v <= schemas.MaxInboundBody, "%s must be at most %d: records are at most %d bytes with their headers",
					names(f), schemas.MaxInboundBody, schemas.MaxRecordBytes)
			}
		case *uint32:
			check(*v > 0 && *v <= 10_000, "%s must be from 1 to 10000", names(f))
		case **int32:
			check(*v == nil || **v > 0 && **v <= 10_000, "%s must be from 1 to 10000", names(f))
		case **int16:
			check(*v == nil || **v > 0, "%s must be above 0", names(f))
		case *[]uint16:
			check(!slices.Contains(*v, 0), "%s: 0 is not a port; ports are from 1 to 65535", names(f))
		case *string:
			if err := checkPath(f, *v); err != nil {
				problems = append(problems, names(f)+": "+err.Error())
			}
		case *Positive:
			if f.Name == "delivery-timeout" {
				check(*v >= Positive(minTimeout) && *v <= Positive(maxTimeout), "%s must be from %s to %s", names(f), minTimeout, maxTimeout)
			}
		}
	}
	return problems
}

// checkPath tells of a path that cannot be used before anything is begun. It makes nothing.
func checkPath(f *kong.Flag, path string) error {
	switch {
	case f.Name == "data-dir" && f.Group != nil: // a service's; the others only read it
		return canMake(path)
	case f.Name == "plans-file" && path != "":
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return f.Close()
	}
	return nil
}

// writeAndSearch is access(2)'s W_OK|X_OK, which package syscall does not name.
const writeAndSearch = 2 | 1

// canMake reports whether a folder is there, or can be made, to be written to.
func canMake(path string) error {
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if errors.Is(err, os.ErrNotExist) && at != filepath.Dir(at) {
			continue
		}
		switch {
		case err != nil:
			return fmt.Errorf("folder %s cannot be made: %w", path, err)
		case !info.IsDir():
			return fmt.Errorf("folder %s cannot be made: %s is a file", path, at)
		case syscall.Access(at, writeAndSearch) != nil:
			return fmt.Errorf("folder %s cannot be written to: there is no right to write in %s", path, at)
		}
		return nil
	}
}

func names(f *kong.Flag) string {
	if len(f.Envs) == 0 {
		return "--" + f.Name
	}
	return f.Envs[0] + " (--" + f.Name + ")"
}

func selectedFlags(ctx *kong.Context) []*kong.Flag {
	if ctx.Selected() == nil {
		return nil
	}
	return ctx.Selected().Flags
}

// commandWords is the chosen command without its arguments.
func commandWords(ctx *kong.Context) string {
	var words []string
	for _, word := range strings.Fields(ctx.Command()) {
		if !strings.HasPrefix(word, "<") {
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
