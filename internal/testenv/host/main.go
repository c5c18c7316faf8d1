// Command host stands between a test process and one server that it started (a Kafka broker, a ClickHouse). It obeys
// lines on its standard input and, once that closes, which happens however the test process ends, it kills the server and
// removes its folder. So nothing outlives a test, and no test has to say so.
//
//	host -folder DIR -output FILE COMMAND ARG…
//
// Lines: start, kill (SIGKILL, and waits), stop (SIGSTOP), cont (SIGCONT), end (SIGTERM, and waits). Each is answered by a
// line: ok, or what went wrong.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/betterdata/webhooks/deploy/local/engine"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == engine.Command {
		os.Exit(engine.Main(os.Args[2:]))
	}
	folder := flag.String("folder", "", "removed at the end")
	output := flag.String("output", "", "file that gets what the server prints")
	flag.Parse()
	s := server{command: flag.Args(), output: *output}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer := "ok"
		if err := s.obey(lines.Text()); err != nil {
			answer = err.Error()
		}
		fmt.Println(answer)
	}
	_ = s.kill()
	removeAll(*folder)
}

// removeAll tries again while a process that was killed a moment ago still writes.
func removeAll(folder string) {
	for range 50 {
		if os.RemoveAll(folder) == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

type server struct {
	command []string
	output  string
	running *exec.Cmd
	input   interface{ Close() error }
}

func (s *server) obey(line string) error {
	if line == "start" {
		return s.start()
	}
	if s.running == nil {
		return errors.New("not running")
	}
	switch line {
	case "kill":
		return s.kill()
	case "stop":
		return s.running.Process.Signal(syscall.SIGSTOP)
	case "cont":
		return s.running.Process.Signal(syscall.SIGCONT)
	case "end":
		return s.end(syscall.SIGTERM)
	}
	return fmt.Errorf("unknown line %q", line)
}

func (s *server) start() error {
	if s.running != nil {
		return errors.New("runs already")
	}
	out, err := os.OpenFile(s.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(s.command[0], s.command[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	// The engine ends when its standard input closes.
	if s.input, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.running = cmd
	return nil
}

func (s *server) kill() error {
	if s.running == nil {
		return nil
	}
	return s.end(syscall.SIGKILL)
}

func (s *server) end(sig syscall.Signal) error {
	err := s.running.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	_ = s.running.Wait()
	s.running = nil
	return err
}
