package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/deploy/local"
	"github.com/betterdata/webhooks/deploy/local/engine"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/settings"
	"github.com/betterdata/webhooks/schemas"
)

// runIngest is `webhooks ingest`.
func runIngest(ctx context.Context, c settings.Ingest, stderr io.Writer) error {
	s, err := newService(ctx, c.Process, c.HTTP, stderr)
	if err != nil {
		return refuse(err)
	}
	defer s.close()
	s.kafka = c.Kafka.Config("")
	s.addTopics()
	if err := s.addTables(schemas.Routes); err != nil {
		return refuse(err)
	}
	guard, err := s.guard(c.Guard)
	if err != nil {
		return refuse(err)
	}
	fromProcessor, err := upstream(c.ProcessorURL, "PROCESSOR_URL")
	if err != nil {
		return refuse(err)
	}
	fromDeliverer, err := upstream(c.DelivererURL, "DELIVERER_URL")
	if err != nil {
		return refuse(err)
	}
	edge, err := s.newIngest(c, guard, fromProcessor, fromDeliverer)
	if err != nil {
		return refuse(err)
	}
	// The edge answers 503 while Kafka is not there.
	s.addEager("ingest", edge.Run, edge.Check)
	s.log.Info("the public address", "url", publicURL(c.Edge, s.http.Addr().String()))
	return s.run(ctx)
}

// upstream forwards to a service, or says that none is set.
func upstream(base settings.BaseURL, setting string) (fasthttp.RequestHandler, error) {
	if base != "" {
		return httpapi.Proxy(string(base))
	}
	return func(ctx *fasthttp.RequestCtx) {
		httpapi.WriteProblem(ctx, httpapi.NewProblem(http.StatusServiceUnavailable, "upstream_unavailable",
			"This edge was started without %s, so it cannot answer this.", setting))
	}, nil
}

// runProcessor is `webhooks processor`.
func runProcessor(ctx context.Context, c settings.Processor, stderr io.Writer) error {
	if _, err := loadPlans(c.Plans); err != nil {
		return refuse(err)
	}
	s, err := newService(ctx, c.Process, c.HTTP, stderr)
	if err != nil {
		return refuse(err)
	}
	defer s.close()
	s.kafka = c.Kafka.Config("")
	s.addTopics()
	if err := s.openRows(ctx, c.ClickHouse, string(c.ClickHouseURL)); err != nil {
		return refuse(err)
	}
	if err := s.addTables(schemas.Billing, schemas.Entitlements, schemas.Endpoints, schemas.Connections); err != nil {
		return refuse(err)
	}
	p, err := s.newProcessor(c)
	if err != nil {
		return refuse(err)
	}
	s.add("processor", p.Run, p.Check)
	s.addHTTP(p.Handler())
	return s.run(ctx)
}

// runDeliverer is `webhooks deliverer`.
func runDeliverer(ctx context.Context, c settings.Deliverer, stderr io.Writer) error {
	s, err := newService(ctx, c.Process, c.HTTP, stderr)
	if err != nil {
		return refuse(err)
	}
	defer s.close()
	s.kafka = c.Kafka.Config("")
	s.addTopics()
	if err := s.openRows(ctx, c.ClickHouse, string(c.ClickHouseURL)); err != nil {
		return refuse(err)
	}
	if err := s.addTables(schemas.Endpoints, schemas.Replays, schemas.EndpointHealth); err != nil {
		return refuse(err)
	}
	guard, err := s.guard(c.Guard)
	if err != nil {
		return refuse(err)
	}
	d, err := s.newDeliverer(c, guard)
	if err != nil {
		return refuse(err)
	}
	s.add("deliverer", d.Run, d.Check)
	s.addHTTP(d.Handler())
	return s.run(ctx)
}

// runAll is `webhooks run`: the three rooms in one process over a broker on 127.0.0.1, on the same paths as apart. Only
// reads are handed from room to room without HTTP.
func runAll(ctx context.Context, c settings.Run, stdout, stderr io.Writer) error {
	if _, err := loadPlans(c.Plans); err != nil {
		return refuse(err)
	}
	s, err := newService(ctx, c.Process, c.HTTP, stderr)
	if err != nil {
		return refuse(err)
	}
	defer s.close()
	if err := s.addAll(ctx, c, stdout, stderr); err != nil {
		return refuse(err)
	}
	return s.run(ctx)
}

// addAll puts the whole system together.
func (s *service) addAll(ctx context.Context, c settings.Run, stdout, stderr io.Writer) error {
	at, err := s.addStack(ctx, &c, stderr)
	if err != nil {
		return err
	}
	s.addTopics()
	if err := s.openRows(ctx, c.ClickHouse, string(c.ClickHouseURL)); err != nil {
		return err
	}
	if err := s.addTables(schemas.Billing, schemas.Entitlements, schemas.Endpoints, schemas.Connections, schemas.Routes, schemas.Replays,
		schemas.EndpointHealth); err != nil {
		return err
	}
	guard, err := s.guard(c.Guard)
	if err != nil {
		return err
	}
	if err := s.addRooms(c, guard); err != nil {
		return err
	}
	if err := local.WriteAddresses(c.DataDir, withForeign(at, c)); err != nil {
		return err
	}
	s.add("console", func(ctx context.Context) error {
		greet(stdout, c, at)
		<-ctx.Done()
		return nil
	}, nil)
	return nil
}

// withForeign adds the Kafka and ClickHouse that are not ours to the addresses that are told.
func withForeign(at local.Addresses, c settings.Run) local.Addresses {
	if at.Kafka == "" {
		at.Kafka = c.KafkaBrokers[0]
	}
	// The URL was checked with the settings.
	if u, err := url.Parse(string(c.ClickHouseURL)); err == nil && at.ClickHouse == "" {
		if u.Scheme == "clickhouse" {
			at.ClickHouse = u.Host
		} else {
			at.ClickHouseHTTP = u.Host
		}
	}
	return at
}

// addRooms puts the rooms together. They stop in the order of the flow: the edge, the processor, the deliverer.
func (s *service) addRooms(c settings.Run, guard *netguard.Guard) error {
	d, err := s.newDeliverer(settings.Deliverer{
		Process: c.Process, HTTP: c.HTTP, Keys: c.Keys, SealKeys: c.SealKeys, Kafka: c.Kafka, ClickHouse: c.ClickHouse,
		EndpointDefaults: c.EndpointDefaults, Guard: c.Guard, Delivery: c.Delivery,
	}, guard)
	if err != nil {
		return err
	}
	p, err := s.newProcessor(settings.Processor{
		Process: c.Process, HTTP: c.HTTP, Keys: c.Keys, SealKeys: c.SealKeys, Kafka: c.Kafka, ClickHouse: c.ClickHouse,
		Plans: c.Plans, Dedupe: c.Dedupe, State: c.State, EndpointLimits: c.EndpointLimits, EndpointDefaults: c.EndpointDefaults,
		Alerting: c.Alerting,
	})
	if err != nil {
		return err
	}
	edge, err := s.newIngest(settings.Ingest{
		Process: c.Process, HTTP: c.HTTP, Edge: c.Edge, Keys: c.Keys, SealKeys: c.SealKeys, Stripe: c.Stripe, Kafka: c.Kafka,
		EndpointDefaults: c.EndpointDefaults, Guard: c.Guard,
	}, guard, p.Handler(), d.Handler())
	if err != nil {
		return err
	}
	s.add("deliverer", d.Run, d.Check)
	s.add("processor", p.Run, p.Check)
	s.addEager("ingest", edge.Run, edge.Check)
	return nil
}

// addStack generates the secrets that are missing and starts what is to be embedded. It completes c.
func (s *service) addStack(ctx context.Context, c *settings.Run, progress io.Writer) (at local.Addresses, err error) {
	at = local.Addresses{HTTP: s.http.Addr().String(), Admin: s.admin.addr.String()}
	// Whoever waits for the file must not read a predecessor's.
	if err := os.Remove(filepath.Join(c.DataDir, local.AddressesFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return at, err
	}
	if err := takeSecrets(c); err != nil {
		return at, err
	}
	if len(c.KafkaBrokers) == 0 {
		broker, err := local.StartBroker(ctx, local.BrokerConfig{Folder: filepath.Join(c.DataDir, "kafka"), Addr: string(c.EmbeddedKafkaAddr)}, s.log)
		if err != nil {
			return at, err
		}
		s.closers = append(s.closers, broker.Stop)
		s.add("kafka", broker.Run, nil)
		at.Kafka = broker.Addr()
		s.own = append(s.own, at.Kafka)
	}
	s.kafka = c.Kafka.Config(at.Kafka)
	if c.ClickHouseURL == "" {
		server, err := engine.Start(ctx, engine.Config{
			Folder: filepath.Join(c.DataDir, "clickhouse"), Addr: string(c.EmbeddedClickHouseAddr),
			HTTPAddr: string(c.EmbeddedClickHouseHTTPAddr), Database: clickhouse.DefaultDatabase, Progress: progress,
		}, s.log)
		if err != nil {
			return at, err
		}
		s.closers = append(s.closers, func() error { return server.Stop(context.WithoutCancel(ctx)) })
		s.add("clickhouse", server.Run, nil)
		at.ClickHouse, at.ClickHouseHTTP = server.Addr(), server.HTTPAddr()
		s.own = append(s.own, server.Listeners()...)
		c.ClickHouseURL = settings.ClickHouseURL(server.URL())
	}
	return at, nil
}

// takeSecrets fills the secrets that are not set from DATA_DIR/dev.env, which is made when it is not there.
func takeSecrets(c *settings.Run) error {
	if c.AdminAPIKey != "" && c.SecretsKey != "" && c.StripeWebhookSecret != "" {
		return nil
	}
	values, _, err := local.LoadOrCreateDevEnv(filepath.Join(c.DataDir, local.DevEnvFile))
	if err != nil {
		return err
	}
	if c.AdminAPIKey == "" {
		c.AdminAPIKey = settings.Secret(values["ADMIN_API_KEY"])
	}
	if c.SecretsKey == "" {
		c.SecretsKey = settings.SecretsKey(values["SECRETS_KEY"])
	}
	if c.StripeWebhookSecret == "" {
		c.StripeWebhookSecret = settings.Secrets(values["STRIPE_WEBHOOK_SECRET"])
	}
	return nil
}

// publicURL is how clients reach the API.
func publicURL(c settings.Edge, addr string) string {
	if c.PublicURL != "" {
		return string(c.PublicURL)
	}
	return "http://" + addr
}

// greet says where everything is and what to do next.
func greet(w io.Writer, c settings.Run, at local.Addresses) {
	public := publicURL(c.Edge, at.HTTP)
	line := func(name, text string) { fmt.Fprintf(w, "  %-12s %s\n", name, text) }
	fmt.Fprintln(w, "Better Data Webhooks is running.")
	line("API", public)
	line("admin", "http://"+at.Admin+"/readyz  /metrics  /debug/pprof/")
	if at.Kafka != "" {
		line("Kafka", at.Kafka+" (embedded)")
	} else {
		line("Kafka", fmt.Sprint([]string(c.KafkaBrokers)))
	}
	if at.ClickHouse != "" {
		line("ClickHouse", "http://"+at.ClickHouseHTTP+", native "+at.ClickHouse+" (embedded), database "+clickhouse.DefaultDatabase)
	} else {
		line("ClickHouse", c.ClickHouseURL.String())
	}
	line("state", c.DataDir)
	if len(c.DeliveryAllowCIDRs) > 0 {
		fmt.Fprintf(w, "Deliveries may reach private addresses: %v (DELIVERY_ALLOW_CIDRS).\n", c.DeliveryAllowCIDRs)
	}
	dataDir := ""
	if c.DataDir != "./.data" {
		dataDir = " --data-dir " + c.DataDir
	}
	fmt.Fprintf(w, "Next, in another terminal, receive what is sent to a merchant:\n\n  ./webhooks listen%s\n\n", dataDir)
	fmt.Fprintf(w, "and in a third, send an event as Stripe would:\n\n  ./webhooks send stripe subscription.created --org acme --new-ids%s\n\n", dataDir)
	if at.ClickHouseHTTP != "" {
		fmt.Fprintf(w, "and look at the record:\n\n  curl -s 'http://%s/?database=%s' --data 'SELECT * FROM delivery_attempts FORMAT Vertical'\n\n",
			at.ClickHouseHTTP, clickhouse.DefaultDatabase)
	}
	fmt.Fprintln(w, "Ctrl-C drains and stops.")
}
