package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/betterdata/webhooks/deploy/local/brokerlog"
	"github.com/betterdata/webhooks/deploy/local/takeover"
	"github.com/betterdata/webhooks/schemas"
)

// retentionInterval is how often old records are dropped while the broker runs.
const retentionInterval = 10 * time.Minute

// BrokerConfig says where the embedded broker lives.
type BrokerConfig struct {
	// Folder holds the log. It is locked while the broker runs.
	Folder string
	// Addr is "host:port"; port 0 picks a free one.
	Addr string
}

// Broker is a Kafka for one machine: franz-go's kfake in this process, with its log on disk. Records survive a stop and a
// SIGKILL; transactions that were in flight are aborted at the next start (package brokerlog). It does not wait for the
// disk, so it promises nothing about a loss of power.
type Broker struct {
	folder  string
	addr    string
	cluster *kfake.Cluster
	lock    *os.File
	stop    sync.Once
}

// StartBroker opens the log, compacts it, and only then lets clients in: kfake's compaction does not know of open
// transactions, so it must not run beside them.
func StartBroker(ctx context.Context, cfg BrokerConfig, log *slog.Logger) (*Broker, error) {
	lock, err := takeover.LockFolder(ctx, cfg.Folder, "DATA_DIR")
	if err != nil {
		return nil, err
	}
	ln, err := takeover.Listen(ctx, cfg.Addr, "EMBEDDED_KAFKA_ADDR")
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	b := &Broker{folder: cfg.Folder, addr: ln.Addr().String(), lock: lock}
	if err := b.open(&gate{Listener: ln, open: make(chan struct{})}, log); err != nil {
		return nil, errors.Join(fmt.Errorf("start the embedded Kafka in %s: %w", cfg.Folder, err), ln.Close(), lock.Close())
	}
	log.Info("embedded kafka runs", "addr", b.addr, "folder", b.folder)
	return b, nil
}

func (b *Broker) open(ln *gate, log *slog.Logger) error {
	killed, err := b.openedBefore()
	if err != nil {
		return err
	}
	if err := b.mend(killed, log); err != nil {
		return err
	}
	b.cluster, err = kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID("webhooks-local"),
		kfake.DataDir(b.logFolder()),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
		kfake.WithLogger(brokerLog{log.With("component", "embedded-kafka")}),
		kfake.BrokerConfigs(map[string]string{
			"message.max.bytes": strconv.Itoa(schemas.MaxRecordBytes),
			// The cleaner's next run: never. See StartBroker.
			"log.cleaner.backoff.ms": strconv.FormatInt((10 * 365 * 24 * time.Hour).Milliseconds(), 10),
		}),
	)
	if err != nil {
		return err
	}
	if err := brokerlog.Compact(b.logFolder(), b.cluster.Compact); err != nil {
		b.cluster.Close()
		return err
	}
	close(ln.open)
	return nil
}

func (b *Broker) logFolder() string { return filepath.Join(b.folder, "log") }

// mend makes whole what the last process left, and says in one line what that was.
func (b *Broker) mend(killed bool, log *slog.Logger) error {
	undone, err := brokerlog.Restore(b.logFolder())
	if err != nil {
		return err
	}
	torn, err := brokerlog.Mend(b.logFolder())
	if err != nil {
		return err
	}
	if killed || undone || !torn.Whole() {
		log.Warn("the embedded kafka was killed; its log is whole again: transactions in flight are aborted",
			"folder", b.folder, "transactions", torn.Transactions, "half_committed", torn.HalfCommitted,
			"markers", torn.Markers, "offsets_taken_back", torn.Offsets, "cut_bytes", torn.CutBytes, "compaction_undone", undone)
	}
	return nil
}

// openMark is there while a broker has the log open.
func (b *Broker) openMark() string { return filepath.Join(b.folder, "open") }

// openedBefore marks the log as open and tells whether it still was, because its last process did not close it.
func (b *Broker) openedBefore() (bool, error) {
	_, err := os.Stat(b.openMark())
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return false, os.WriteFile(b.openMark(), nil, 0o600)
}

// Addr is where clients connect.
func (b *Broker) Addr() string { return b.addr }

// Run drops records past their retention now and then until ctx ends, then closes the log.
func (b *Broker) Run(ctx context.Context) error {
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return b.Stop()
		case <-tick.C:
			b.cluster.ApplyRetention()
		}
	}
}

// Stop closes the log. It is to be called when all clients are done.
func (b *Broker) Stop() (err error) {
	b.stop.Do(func() {
		b.cluster.Close()
		err = errors.Join(os.Remove(b.openMark()), b.lock.Close())
	})
	return err
}

// gate is a listener that lets nobody in before it is opened.
type gate struct {
	net.Listener
	open chan struct{}
}

func (g *gate) Accept() (net.Conn, error) {
	<-g.open
	return g.Listener.Accept()
}

// brokerLog passes kfake's log on. What it calls info is each request.
type brokerLog struct{ log *slog.Logger }

func (l brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	}
	if l.log.Enabled(context.Background(), to) {
		l.log.Log(context.Background(), to, fmt.Sprintf(format, args...))
	}
}
