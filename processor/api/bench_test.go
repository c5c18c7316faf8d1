package api

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// BenchmarkEntitlements answers one of 100,000 organizations from a copy on disk.
func BenchmarkEntitlements(b *testing.B) {
	const orgs = 100_000
	log := slog.New(slog.DiscardHandler)
	handler := newRig(b, nil).serving(filledTable(b, orgs, log), log)
	ctx := &fasthttp.RequestCtx{}
	ctx.Init(&fasthttp.Request{}, nil, nil)
	ctx.Request.Header.Set("Authorization", "Bearer "+admin)
	b.ReportAllocs()
	for b.Loop() {
		ctx.Request.SetRequestURI(fmt.Sprintf("/v1/orgs/org_%d/entitlements", rand.IntN(orgs)))
		ctx.Response.Reset()
		handler(ctx)
		if ctx.Response.StatusCode() != http.StatusOK {
			b.Fatalf("%s", ctx.Response.Body())
		}
	}
}

// serving is the API over another table of entitlements.
func (r *rig) serving(entitlements Table, log *slog.Logger) fasthttp.RequestHandler {
	router := httpapi.NewRouter(httpapi.AdminKey(admin), log)
	New(Config{Plans: plans.Builtin(), EntitlementsMaxAge: time.Minute},
		Tables{r.billing, entitlements, r.endpoints, r.connections}, nil, log).Routes(router)
	return router.Handler()
}

// filledTable is a current copy of a table with the snapshots of some organizations.
func filledTable(b *testing.B, orgs int, log *slog.Logger) *table.Copy {
	cfg := testenv.FakeKafka(b)
	producer, err := kafka.NewProducer(cfg, kafka.ProducerLimits{Records: orgs, Bytes: 1 << 28, Timeout: time.Minute}, log)
	require.NoError(b, err)
	defer producer.Close()
	var records []*kgo.Record
	for i := range orgs {
		org := fmt.Sprint("org_", i)
		value, err := proto.Marshal(&webhooksv1.TenantCapabilitySnapshot{OrganizationId: org, Version: 3, Plan: "SCM_PRO", Status: "active"})
		require.NoError(b, err)
		records = append(records, &kgo.Record{
			Topic: cfg.Topic(schemas.Entitlements), Partition: cfg.PartitionOf(org), Key: []byte(org), Value: value,
		})
	}
	require.NoError(b, producer.ProduceSync(b.Context(), records...).FirstErr())
	c, err := table.New(table.Config{Kafka: cfg, StateDir: b.TempDir(), Topic: schemas.Entitlements}, log, prometheus.NewRegistry())
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		require.NoError(b, <-ended)
		require.NoError(b, c.Close())
	})
	require.Eventually(b, func() bool { return c.Check(b.Context()) == nil }, time.Minute, 10*time.Millisecond)
	return c
}
