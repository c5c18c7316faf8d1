package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const secret = "whsec_bench"

func runBroker() error {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": fmt.Sprint(schemas.MaxRecordBytes)}))
	if err != nil {
		return err
	}
	defer cluster.Close()
	fmt.Println(cluster.ListenAddrs()[0])
	return obey(nil)
}

// obey answers lines until there are no more: each command, or "cpu" with this process's CPU time.
func obey(commands map[string]func() (string, error)) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if command := commands[lines.Text()]; command != nil {
			answer, err := command()
			if err != nil {
				return err
			}
			fmt.Println(answer)
			continue
		}
		var used syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
			return err
		}
		fmt.Println((used.Utime.Nano() + used.Stime.Nano()) / 1000)
	}
	return nil
}

// runBare serves 200 and does nothing, with the edge's own server.
func runBare(options) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := ingest.NewServer(func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(fasthttp.StatusOK) }, quiet())
	go func() { _ = server.Serve(listener) }()
	fmt.Println(listener.Addr())
	return obey(nil)
}

// routes is the table `routes`: every account of the load has one.
type routes struct{ fn func(key, value []byte) }

func (r *routes) OnChange(fn func(key, value []byte)) { r.fn = fn }
func (r *routes) Check(context.Context) error         { return nil }

func runEdge(o options) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cluster := kafka.Config{Brokers: strings.Split(o.brokers, ","), TopicPrefix: fmt.Sprintf("bench-%d.", time.Now().UnixNano()), Partitions: int32(o.partitions), ReplicationFactor: 1}
	if err := kafka.EnsureTopics(ctx, cluster, quiet()); err != nil {
		return err
	}
	keyring, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		return err
	}
	nobody := func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(fasthttp.StatusNotFound) }
	table := &routes{}
	edge, err := ingest.New(
		ingest.Config{HTTPAddr: "127.0.0.1:0", Kafka: cluster, Stripe: stripe.Config{Secrets: []string{secret}}},
		ingest.Deps{Routes: table, Auth: httpapi.AdminKey("bench"), Keyring: keyring, Rules: resource.NewRules(resource.Config{}),
			Processor: nobody, Deliverer: nobody, Log: quiet(), Registerer: prometheus.NewRegistry()})
	if err != nil {
		return err
	}
	for i := range accounts {
		route, err := proto.Marshal(&webhooksv1.Route{OrganizationId: fmt.Sprintf("org_%d", i)})
		if err != nil {
			return err
		}
		table.fn([]byte("stripe/"+customer(i)), route)
	}
	addr, err := edge.Listen()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- edge.Run(ctx) }()
	for edge.Check(ctx) != nil {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	stopProfile, err := profile(o.profile)
	if err != nil {
		return err
	}
	fmt.Println(addr)
	err = obey(nil)
	stopProfile()
	cancel()
	return errors.Join(err, <-done)
}

// profile writes a CPU profile to a file until stop is called; an empty name writes none.
func profile(name string) (stop func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return pprof.StopCPUProfile, pprof.StartCPUProfile(f)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
