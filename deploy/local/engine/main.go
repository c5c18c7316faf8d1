package engine

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/betterdata/webhooks/deploy/local/takeover"
)

// drainTimeout is how long the engine may take to close once its parent is gone or asks it to. A successor waits
// takeover.Patience for the ports, which is longer.
const drainTimeout = 6 * time.Second

// options are the command line that Args and Locate make.
type options struct {
	library, program, folder, host string
	tcpPort, httpPort              int
	inner                          innerPorts
}

// Main is the child process: it serves ClickHouse until its standard input closes, which happens however its parent ends,
// or a SIGTERM comes, and returns the exit code. Acknowledged rows are on disk either way.
func Main(args []string) int {
	var o options
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	flags.StringVar(&o.library, "library", "", "path of libchdb")
	flags.StringVar(&o.program, "program", "", "path of a clickhouse program, instead of the library")
	flags.StringVar(&o.folder, "folder", "", "where the data is")
	flags.StringVar(&o.host, "host", "", "address to listen on")
	flags.IntVar(&o.tcpPort, "tcp-port", 0, "native protocol")
	flags.IntVar(&o.httpPort, "http-port", 0, "HTTP")
	flags.IntVar(&o.inner.tcp, "inner-tcp-port", 0, "native protocol of the library, behind the relay; 0 picks one")
	flags.IntVar(&o.inner.http, "inner-http-port", 0, "HTTP of the library, behind the relay; 0 picks one")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	serve := serveLibrary
	if o.program != "" {
		serve = serveProgram
	}
	if err := serve(o, ended()); err != nil {
		fmt.Fprintln(os.Stderr, "clickhouse:", err)
		return 1
	}
	return 0
}

// ended is closed when the process has to end.
func ended() <-chan struct{} {
	end := make(chan struct{})
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(orphaned)
	}()
	go func() {
		select {
		case <-terminated:
		case <-orphaned:
		}
		close(end)
	}()
	return end
}

// serveLibrary runs the engine in this process, behind relays. Its listeners live as long as one query does: a read of a
// pipe whose writer closes at the end.
func serveLibrary(o options, end <-chan struct{}) error {
	query, err := loadQuery(o.library)
	if err != nil {
		return err
	}
	inner := o.inner
	if inner == (innerPorts{}) {
		if inner, err = freeInnerPorts(); err != nil {
			return err
		}
	}
	endTCP, err := listenBefore(o.host, o.tcpPort, inner.addr(inner.tcp))
	if err != nil {
		return err
	}
	endHTTP, err := listenBefore(o.host, o.httpPort, inner.addr(inner.http))
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(r)
	go func() {
		<-end
		endTCP()
		endHTTP()
		_ = w.Close()
		time.Sleep(drainTimeout)
		fmt.Fprintln(os.Stderr, "clickhouse: not closed in time, ending without")
		os.Exit(1)
	}()
	return query([]string{
		"clickhouse", "--path=" + o.folder, "--listen_host=" + innerHost,
		fmt.Sprintf("--tcp_port=%d", inner.tcp), fmt.Sprintf("--http_port=%d", inner.http),
		// HTTP last: where it answers, all listens.
		"--query", fmt.Sprintf("SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; SELECT * FROM file('/dev/fd/%d', LineAsString)", r.Fd()),
	})
}

// innerHost is where the engine itself listens, behind the relays.
const innerHost = "127.0.0.1"

// innerPorts are those that the engine itself takes on innerHost. A program takes none.
type innerPorts struct{ tcp, http int }

func freeInnerPorts() (p innerPorts, err error) {
	for p.tcp == p.http {
		for _, port := range []*int{&p.tcp, &p.http} {
			addr, err := takeover.FreeAddr(innerHost)
			if err != nil {
				return p, err
			}
			if _, *port, err = split(addr); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

func (innerPorts) addr(port int) string { return net.JoinHostPort(innerHost, strconv.Itoa(port)) }

// args are the arguments of Main that say which they are.
func (p innerPorts) args() []string {
	return []string{fmt.Sprintf("-inner-tcp-port=%d", p.tcp), fmt.Sprintf("-inner-http-port=%d", p.http)}
}

// listenBefore relays what comes to a port to the address that the engine is to take.
func listenBefore(host string, port int, target string) (end func(), err error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	r := newRelay(target)
	go r.serve(ln)
	return func() {
		_ = ln.Close()
		r.end()
	}, nil
}

// result is chdb's struct local_result_v2; of its fields only the message of an error is of use here.
type result struct {
	_   unsafe.Pointer // buf
	_   uintptr        // len
	_   unsafe.Pointer // vec
	_   float64        // elapsed
	_   uint64         // rows read
	_   uint64         // bytes read
	err unsafe.Pointer
}

// loadQuery is query_stable_v2, which runs `clickhouse local` with the arguments of a command line. (chdb_connect, the
// newer call, cannot listen.)
func loadQuery(path string) (func(args []string) error, error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("load %s (it needs glibc; elsewhere put a clickhouse program on PATH): %w", path, err)
	}
	var call func(argc int32, argv unsafe.Pointer) *result
	purego.RegisterLibFunc(&call, handle, "query_stable_v2")
	return func(args []string) error {
		argv := make([]*byte, len(args)+1)
		for i, a := range args {
			argv[i] = unsafe.SliceData(append([]byte(a), 0))
		}
		got := call(int32(len(args)), unsafe.Pointer(unsafe.SliceData(argv)))
		runtime.KeepAlive(argv)
		if got != nil && got.err != nil {
			return errors.New(text(got.err))
		}
		return nil
	}, nil
}

// text copies a C string.
func text(p unsafe.Pointer) string {
	n := 0
	for *(*byte)(unsafe.Add(p, n)) != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(p), n))
}

// serveProgram runs an installed ClickHouse below this process, so that it ends however the parent does.
func serveProgram(o options, end <-chan struct{}) error {
	config, err := writeServerConfig(o)
	if err != nil {
		return err
	}
	server := exec.Command(o.program, "server", "--config-file="+config)
	server.Dir = o.folder
	// Without its watchdog process the signals below reach the server itself.
	server.Env = append(os.Environ(), "CLICKHOUSE_WATCHDOG_ENABLE=0")
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	if err := server.Start(); err != nil {
		return fmt.Errorf("start %s: %w", o.program, err)
	}
	exited := make(chan error, 1)
	go func() { exited <- server.Wait() }()
	select {
	case err := <-exited:
		return fmt.Errorf("%s ended by itself: %v", o.program, err)
	case <-end:
	}
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-exited:
		return nil
	case <-time.After(drainTimeout):
		return server.Process.Kill()
	}
}
