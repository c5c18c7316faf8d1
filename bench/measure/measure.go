// Package measure is what the bench programs share: competitors as processes of their own, what the operating system
// says that they used, and medians.
//
// A bench starts itself again for each role. A child says one line when it is ready, answers each line with a line, and
// ends when its standard input does; so nothing outlives the bench, and neither a start nor another process is in a
// figure.
package measure

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// Child is another process.
type Child struct {
	// Hello is its first line.
	Hello string

	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Self starts this program again with other arguments.
func Self(args ...string) (*Child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return Start(exec.Command(self, args...))
}

// Start starts a command and reads its first line. What it writes to its standard error is shown.
func Start(cmd *exec.Cmd) (*Child, error) {
	c := &Child{cmd: cmd}
	cmd.Stderr = os.Stderr
	in, errIn := cmd.StdinPipe()
	out, errOut := cmd.StdoutPipe()
	if err := errors.Join(errIn, errOut, cmd.Start()); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	if _, err := fmt.Fscanln(c.out, &c.Hello); err != nil {
		c.Stop()
		return nil, fmt.Errorf("%v did not start: %w", cmd.Args, err)
	}
	return c, nil
}

// Ask sends a line and reads the values of the answer.
func (c *Child) Ask(line string, values ...any) error {
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		return err
	}
	_, err := fmt.Fscanln(c.out, values...)
	return err
}

// Kill ends the child at once.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// Stop lets the child end, and kills it when it does not within ten seconds.
func (c *Child) Stop() {
	_ = c.in.Close()
	defer time.AfterFunc(10*time.Second, func() { _ = c.cmd.Process.Kill() }).Stop()
	_ = c.cmd.Wait()
}

// CPU is what the child has used so far, user and system, in steps of 10 ms.
func (c *Child) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses and may hold anything; utime and stime are the 14th and 15th.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	user, errUser := strconv.ParseInt(string(fields[11]), 10, 64)
	system, errSystem := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(errUser, errSystem)
}

// PeakMemory is the most that was resident of the child at any time, in bytes.
func (c *Child) PeakMemory() (int64, error) { return c.status("VmHWM:") }

// Memory is what is resident of the child now, in bytes.
func (c *Child) Memory() (int64, error) { return c.status("VmRSS:") }

// status reads a line of kilobytes.
func (c *Child) status(name string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := bytes.Cut(status, []byte(name))
	var kB int64
	_, err = fmt.Sscan(string(after), &kB)
	return kB << 10, err
}

// Obey is a child's side: it says hello, then answers each line.
func Obey(hello any, answer func(line string) (any, error)) error {
	fmt.Println(hello)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		value, err := answer(lines.Text())
		if err != nil {
			return err
		}
		fmt.Println(value)
	}
	return nil
}

// Median sorts the values.
func Median[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}
