package fire

import (
	"log/slog"
	"os"
)

// Child runs an instance when this process was started to be one: when the environment has the variable, with what the
// instance is told for a value.
func Child(variable string, run func(told []byte, log *slog.Logger) error) (exit int, is bool) {
	told, is := os.LookupEnv(variable)
	if !is {
		return 0, false
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("pid", os.Getpid())
	if err := run([]byte(told), log); err != nil {
		log.Error("the instance has failed", "error", err)
		return 1, true
	}
	return 0, true
}
