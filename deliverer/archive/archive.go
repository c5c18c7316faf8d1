// Package archive finds deliveries that their owner has let go of, because they ended: what a manual retry has to know of
// one stands in ClickHouse alone.
//
// What it answers is whole as of the call: every row of the delivery that was written before, by this owner or one before
// it, is in what it read. That is what keeps a retry from giving a number twice, and a row a version that another has. Rows
// reach ClickHouse a second or two after their transaction, or hours after it, so Find does not trust what is there:
//
//   - The number of attempts and the version of the delivery's row come with every attempt, in its transaction, to the
//     partition of `delivery-rows` that its endpoint's partition is (schemas).
//   - Records of a transaction are in the log before it ends, and whoever owns the partition had ended the transaction
//     that let go of the delivery, or knew that its predecessor's had ended, before it could ask. So the log's end, as of
//     a question asked now, is behind all of them. It is the end of all records, not of the committed ones: Kafka
//     acknowledges the end of a transaction before its markers are written.
//   - The sink of `deliveries` commits an offset once all rows before it are inserted (internal/sink). So when its
//     group's committed offset has passed that end, they are in the table.
//
// Rows that are written after the call are the caller's to know of: it owns the partition, and makes them.
//
// Find waits for as long as that takes: ClickHouse may be away, or the sink behind for one partition. A bounded number of
// them look at a time; one that waits for its next look keeps none from looking.
package archive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/semaphore"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	// finds is how many look at a time.
	finds = 4
	// poll is how often it is asked again what was not so yet.
	poll = 200 * time.Millisecond
	// slow is after how long a wait is reported.
	slow = 10 * time.Second
)

// ErrNotFound says that the record has no such delivery, or no longer its event.
var ErrNotFound = errors.New("not in the record")

// Delivery is a delivery as its rows tell it.
type Delivery struct {
	// Row is the newest: its version is the highest, its attempt_count the number of the last attempt.
	Row *webhooksv1.DeliveryRow
	// Event is what was sent, byte for byte; nil for a test, whose event has no row.
	Event *webhooksv1.OutboundEvent
}

// Archive reads the record. It is safe for concurrent use.
type Archive struct {
	cfg     kafka.Config
	conn    driver.Conn
	log     *slog.Logger
	client  *kgo.Client
	admin   *kadm.Client
	filters *eventfilter.Compiler
	slots   *semaphore.Weighted
}

// New makes an Archive over a connection whose default database has the tables. It connects to nothing.
func New(cfg kafka.Config, conn driver.Conn, log *slog.Logger) (*Archive, error) {
	client, err := kgo.NewClient(kafka.Options(cfg, log)...)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	filters, err := eventfilter.NewCompiler()
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("archive: %w", err)
	}
	return &Archive{
		cfg: cfg, conn: conn, log: log, client: client, admin: kadm.NewClient(client), filters: filters,
		slots: semaphore.NewWeighted(finds),
	}, nil
}

// Close lets the connections go. No Find may be under way.
func (a *Archive) Close() { a.admin.Close() }

// Find looks for a delivery whose endpoint is of that partition, as of now. It answers ErrNotFound, or, once ctx has
// ended, ctx's error; what else fails is tried again.
func (a *Archive) Find(ctx context.Context, partition int32, organization, delivery string) (*Delivery, error) {
	f := &find{
		a: a, organization: organization, delivery: delivery,
		rows:   stretch{schemas.DeliveryRows, sinkOf("deliveries"), partition, -1},
		events: stretch{schemas.EventRows, sinkOf("events"), a.cfg.PartitionOf(organization), -1},
	}
	began, reported := time.Now(), time.Now()
	for {
		found, err := f.look(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil || errors.Is(err, ErrNotFound) {
			return found, err
		}
		if time.Since(reported) >= slow {
			reported = time.Now()
			a.log.Warn("an ended delivery waits to be found in the record", "org", organization, "delivery_id", delivery,
				"for", time.Since(began).Round(time.Second), "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(poll):
		}
	}
}

// find is one search.
type find struct {
	a                      *Archive
	organization, delivery string
	// rows and events are what the sinks must have passed.
	rows, events stretch
}

// errBehind says that a sink has not passed the end.
var errBehind = errors.New("the record is behind the log")

// look tries once, in its turn.
func (f *find) look(ctx context.Context) (*Delivery, error) {
	if err := f.a.slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer f.a.slots.Release(1)
	return f.try(ctx)
}

func (f *find) try(ctx context.Context) (*Delivery, error) {
	if err := f.passed(ctx, &f.rows); err != nil {
		return nil, err
	}
	row, err := f.a.row(ctx, f.organization, f.delivery)
	if err != nil {
		return nil, err
	}
	if row.GetTest() {
		return &Delivery{Row: row}, nil
	}
	event, err := f.a.event(ctx, row)
	if !errors.Is(err, ErrNotFound) {
		return &Delivery{row, event}, err
	}
	// Its row was written with the delivery's first one, and may be on its way.
	if err := f.passed(ctx, &f.events); err != nil {
		return nil, err
	}
	event, err = f.a.event(ctx, row)
	return &Delivery{row, event}, err
}

// passed is nil once a sink has all rows of its stretch in the table. It goes past the marks of transactions, too.
func (f *find) passed(ctx context.Context, s *stretch) error {
	at, err := f.a.position(ctx, s)
	if err == nil && at < s.end {
		err = fmt.Errorf("%w: %s/%d up to %d", errBehind, s.topic, s.partition, s.end)
	}
	return err
}
