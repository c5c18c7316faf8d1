package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

const (
	replicasEvery   = 3 * time.Second
	replicasTimeout = 2 * time.Second
	// minInSync is how many replicas must hold a record for a 2xx to be durable (DESIGN §2, promise 1).
	minInSync = 2
)

// replicas watches whether the edge's topics have enough replicas in sync: without them nothing that is answered 200
// would survive a broker.
type replicas struct {
	cfg   kafka.Config
	admin *kadm.Client
	// state is why the edge is not ready; empty when it is.
	state atomic.Pointer[string]
}

func newReplicas(cfg kafka.Config, admin *kadm.Client) *replicas {
	r := &replicas{cfg: cfg, admin: admin}
	r.set(errors.New("the replicas in sync are not known yet"))
	return r
}

func (r *replicas) set(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.state.Store(&text)
}

// check is nil while the topics were in order when last looked at.
func (r *replicas) check() error {
	if text := *r.state.Load(); text != "" {
		return errors.New(text)
	}
	return nil
}

func (r *replicas) run(ctx context.Context) {
	tick := time.NewTicker(replicasEvery)
	defer tick.Stop()
	for {
		r.set(r.look(ctx))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *replicas) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, replicasTimeout)
	defer cancel()
	topics, err := r.admin.ListTopics(ctx, r.cfg.Topic(schemas.Inbound), r.cfg.Topic(schemas.InboundUnrouted))
	if err != nil {
		return fmt.Errorf("ask Kafka for its topics: %w", err)
	}
	need := minInSync
	if r.cfg.ReplicationFactor == 1 {
		need = 1
	}
	for _, topic := range topics {
		if topic.Err != nil {
			return fmt.Errorf("topic %s: %w", topic.Topic, topic.Err)
		}
		for _, p := range topic.Partitions {
			if p.Err != nil || p.Leader < 0 || len(p.ISR) < need {
				return fmt.Errorf("partition %d of topic %s has %d replicas in sync and needs %d", p.Partition, topic.Topic, len(p.ISR), need)
			}
		}
	}
	return nil
}
