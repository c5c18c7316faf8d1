package stream

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/betterdata/webhooks/internal/kafka"
)

func TestWhatStandsAtAnOffsetSetByHandMayBeARepeat(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c, starts := newClient(t, cfg), startsFile(t)
		records, units := parcels(0, 40)
		c.produce(senderIn, records...)
		c.commitOffsets("sender", senderIn, nil)
		begin(t, senderSpec(starts, 500), config(cfg, t.TempDir()))
		require.Equal(t, units, c.requireRows(units, starts), "all of it may have been sent before")
	})
}

func TestAGroupWhoseOffsetsAreGoneDoesNotBeginAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c, dir := newClient(t, cfg), t.TempDir()
		in := numbers(100, 20)
		g := begin(t, counterSpec(), config(cfg, dir)).ready()
		c.produce(counterIn, in...)
		c.requireExact(100, in)
		g.stop()
		_, err := kadm.NewClient(c.Client).DeleteGroup(context.Background(), cfg.TopicPrefix+"counter")
		require.NoError(t, err)
		for name, dir := range map[string]string{"with its local state": dir, "without": t.TempDir()} {
			again, err := New(counterSpec(), config(cfg, dir), testLog(t), prometheus.NewRegistry())
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			err = again.Run(ctx)
			cancel()
			require.ErrorIs(t, err, errForgotten, name)
			require.ErrorContains(t, err, "--reset-offsets", name)
		}
		c.requireExact(100, in)
	})
}
