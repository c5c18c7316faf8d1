package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	secret     = "whsec_bench"
	customers  = 10_000
	eventBytes = 3000
	// prepared is how many different requests a connection sends in turn.
	prepared = 64
)

// serve is the side of a child that is asked nothing.
func serve(hello any) error {
	return measure.Obey(hello, func(line string) (any, error) { return nil, fmt.Errorf("unknown line %q", line) })
}

func runBroker(options) error {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": fmt.Sprint(schemas.MaxRecordBytes)}))
	if err != nil {
		return err
	}
	defer cluster.Close()
	return serve(cluster.ListenAddrs()[0])
}

// runBare serves 200 and does nothing, with the edge's own server.
func runBare(options) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := ingest.NewServer(func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(fasthttp.StatusOK) }, slog.New(slog.DiscardHandler))
	go func() { _ = server.Serve(listener) }()
	return serve(listener.Addr())
}

func runEdge(o options) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cluster := kafka.Config{Brokers: strings.Split(o.brokers, ","), TopicPrefix: fmt.Sprintf("bench-%d.", time.Now().UnixNano()),
		Partitions: int32(o.partitions), ReplicationFactor: 1}
	nobody := func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(fasthttp.StatusNotFound) }
	table := &routes{}
	keyring, err := seal.NewKeyring(seal.NewKey())
	if err := errors.Join(err, kafka.EnsureTopics(ctx, cluster, slog.New(slog.DiscardHandler))); err != nil {
		return err
	}
	edge, err := ingest.New(
		ingest.Config{HTTPAddr: "127.0.0.1:0", Kafka: cluster, Stripe: stripe.Config{Secrets: []string{secret}}},
		ingest.Deps{Routes: table, Auth: httpapi.AdminKey("bench"), AdminKey: "bench", Keyring: keyring, Rules: resource.NewRules(resource.Config{}),
			Processor: nobody, Deliverer: nobody, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		return err
	}
	for i := range customers {
		route, err := proto.Marshal(&webhooksv1.Route{OrganizationId: fmt.Sprintf("org_%d", i)})
		if err != nil {
			return err
		}
		table.changed([]byte("stripe/"+customer(i)), route)
	}
	listening, err := edge.Listen()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- edge.Run(ctx) }()
	for edge.Check(ctx) != nil {
		time.Sleep(10 * time.Millisecond)
	}
	err = serve(listening)
	cancel()
	return errors.Join(err, <-done)
}

// routes stands in for the copy of the table `routes`.
type routes struct{ changed func(key, value []byte) }

func (r *routes) OnChange(fn func(key, value []byte)) { r.changed = fn }
func (r *routes) Check(context.Context) error         { return nil }
func (*routes) Age() time.Duration                    { return 0 }

func customer(i int) string { return fmt.Sprintf("cus_%014d", i%customers) }

// event is a subscription's event in Stripe's form, filled up with metadata to its size.
func event(i int) []byte {
	body := fmt.Appendf(nil, "{\n  \"id\": \"evt_%020d\",\n  \"object\": \"event\",\n  \"created\": 1767323045,\n"+
		"  \"type\": \"customer.subscription.updated\",\n  \"livemode\": true,\n  \"data\": {\n    \"object\": {\n"+
		"      \"id\": \"sub_%014d\",\n      \"object\": \"subscription\",\n      \"customer\": \"%s\",\n      \"metadata\": {\n", i, i, customer(i))
	const note, end = "        \"note_%02d\": \"of the usual length\",\n", "        \"last\": null\n      }\n    }\n  }\n}\n"
	for n := 0; len(body)+len(note)+len(end) <= eventBytes; n++ {
		body = fmt.Appendf(body, note, n)
	}
	return append(append(body, strings.Repeat(" ", eventBytes-len(body)-len(end))...), end...)
}

// runLoad signs its requests, then keeps every connection busy for the given time when told to go.
func runLoad(o options) error {
	requests := make([][]*fasthttp.Request, o.connections)
	for c := range requests {
		for i := range prepared {
			body, at := event(c*prepared+i), time.Now()
			req := &fasthttp.Request{}
			req.SetRequestURI("http://" + o.target + "/webhooks/stripe")
			req.Header.SetMethod(fasthttp.MethodPost)
			req.Header.SetUserAgent("Stripe/1.0 (+https://stripe.com/docs/webhooks)")
			req.Header.Set("Stripe-Signature", fmt.Sprintf("t=%d,v1=%x", at.Unix(), webhook.ComputeSignature(at, body, secret)))
			req.SetBodyRaw(body)
			requests[c] = append(requests[c], req)
		}
	}
	client := &fasthttp.HostClient{Addr: o.target, MaxConns: o.connections}
	return measure.Obey("ready", func(string) (any, error) {
		var answered atomic.Int64
		var running errgroup.Group
		until := time.Now().Add(time.Duration(o.seconds * float64(time.Second)))
		for _, own := range requests {
			running.Go(func() error {
				res := &fasthttp.Response{}
				for i := 0; time.Now().Before(until); i++ {
					if err := client.Do(own[i%prepared], res); err != nil || res.StatusCode() != fasthttp.StatusOK {
						return fmt.Errorf("answered %d %s: %w", res.StatusCode(), res.Body(), err)
					}
					answered.Add(1)
				}
				return nil
			})
		}
		err := running.Wait()
		return answered.Load(), err
	})
}
