// Command host stands between a test process and one server that it started (a Kafka broker, a ClickHouse, our own
// program). It obeys lines on its standard input and, once that closes, which happens however the test process ends, it
// kills the server and removes its folder. So nothing outlives a test, and no test has to say so.
//
//	host -folder DIR -output FILE COMMAND ARG…
//
// Each line is answered by a line: ok, or what went wrong.
//
//	start      run the command
//	alive      is it still running?
//	kill       SIGKILL, and wait; it is wrong when the server had ended by itself
//	end        SIGTERM, and wait; an exit status other than 0 is told
//	interrupt  the same with SIGINT
//	stop cont  SIGSTOP, SIGCONT
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
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
	// Ctrl-C is for the test process; what is to be done then is done at the end of the input.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM)
	s := server{command: flag.Args(), output: *output}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer := "ok"
		if err := s.obey(lines.Text()); err != nil {
			answer = err.Error()
		}
		fmt.Println(answer)
	}
	if s.running != nil {
		_ = s.end(syscall.SIGKILL)
	}
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
	exited  chan struct{} // closed once running is waited for
	err     error         // how it ended
}

func (s *server) obey(line string) error {
	if line == "start" {
		return s.start()
	}
	if s.running == nil {
		return errors.New("not running")
	}
	select {
	case <-s.exited:
		s.running = nil
		return fmt.Errorf("it had ended by itself: %v", s.err)
	default:
	}
	switch line {
	case "alive":
		return nil
	case "kill":
		_ = s.end(syscall.SIGKILL)
		return nil
	case "end":
		return s.end(syscall.SIGTERM)
	case "interrupt":
		return s.end(syscall.SIGINT)
	case "stop":
		return s.running.Process.Signal(syscall.SIGSTOP)
	case "cont":
		return s.running.Process.Signal(syscall.SIGCONT)
	}
	return fmt.Errorf("unknown line %q", line)
}

func (s *server) start() error {
	if s.running != nil {
		return errors.New("it runs already")
	}
	out, err := os.OpenFile(s.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(s.command[0], s.command[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	// Held open: the ClickHouse engine ends when its standard input closes.
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.running, s.exited = cmd, make(chan struct{})
	go func() {
		s.err = cmd.Wait()
		close(s.exited)
	}()
	return nil
}

func (s *server) end(sig syscall.Signal) error {
	if err := s.running.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.exited
	s.running = nil
	return s.err
}
