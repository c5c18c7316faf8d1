package dispatch_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const org = "org_1"

// world is one partition's task with a merchant side that tests command.
type world struct {
	*streamtest.Harness
	t         streamtest.TB
	d         *dispatch.Dispatcher
	ring      *seal.Keyring
	endpoints *table
	receiver  *receiver
	archive   *record
	ranges    *ranges
	registry  *prometheus.Registry
	workers   int
}

// config is what a test chooses.
type config struct {
	dispatch.Config
	InFlight int
	Bytes    int64
}

func newWorld(t streamtest.TB, change func(*config)) *world {
	t.Helper()
	ring, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	w := &world{t: t, ring: ring, endpoints: &table{rows: map[string][]byte{}}, registry: prometheus.NewRegistry()}
	cfg := config{InFlight: 4096, Bytes: 256 << 20}
	cfg.Retries = schedule.Policy{Delays: []time.Duration{5 * time.Second, time.Minute}}
	if change != nil {
		change(&cfg)
	}
	w.workers = cfg.InFlight
	w.receiver = newReceiver()
	w.archive = &record{rows: map[string]*webhooksv1.DeliveryRow{}, bodies: map[string][]byte{}}
	w.ranges = &ranges{}
	w.d, err = dispatch.NewBounded(cfg.Config, cfg.InFlight, cfg.Bytes, dispatch.Deps{
		Sender:    w.receiver,
		Guard:     netguard.New(netguard.Policy{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}),
		Secrets:   ring,
		Endpoints: w.endpoints,
		Archive: struct {
			*record
			*ranges
		}{w.archive, w.ranges},
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
		Registry: w.registry,
	})
	require.NoError(t, err)
	w.Harness = streamtest.New(t, w.d.Spec())
	w.receiver.clock.Store(w.Now.UnixNano())
	t.Cleanup(func() {
		w.Task().Close()
		w.d.Close(context.Background())
		require.Zero(t, w.d.HeldBytes(), "what left hand left memory")
	})
	t.Cleanup(w.receiver.releaseAll)
	t.Cleanup(w.archive.release)
	return w
}

// What is committed comes to the archive as it does to ClickHouse.

func (w *world) Process(records ...*kgo.Record) streamtest.Outputs {
	return w.recorded(w.Harness.Process(records...))
}
func (w *world) Commit() streamtest.Outputs    { return w.recorded(w.Harness.Commit()) }
func (w *world) Redeliver() streamtest.Outputs { return w.recorded(w.Harness.Redeliver()) }
func (w *world) Stop() streamtest.Outputs      { return w.recorded(w.Harness.Stop()) }
func (w *world) Advance(now time.Time) streamtest.Outputs {
	return w.recorded(w.Harness.Advance(now))
}

func (w *world) recorded(out streamtest.Outputs) streamtest.Outputs {
	w.t.Helper()
	w.archive.insert(deliveries(w.t, out))
	return out
}

// record stands in for the archive. It has every row that was committed before it is asked.
type record struct {
	mu     sync.Mutex
	rows   map[string]*webhooksv1.DeliveryRow
	bodies map[string][]byte // by event
	held   chan struct{}     // nothing is found before it is closed
	asked  int
	waits  int
}

func (r *record) insert(rows []*webhooksv1.DeliveryRow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, row := range rows {
		if row.Version > r.rows[row.DeliveryId].GetVersion() {
			r.rows[row.DeliveryId] = row
		}
	}
}

func (r *record) Find(ctx context.Context, partition int32, organization, delivery string) (*archive.Delivery, error) {
	r.mu.Lock()
	row := r.rows[delivery]
	body := r.bodies[row.GetEventId()]
	r.asked++
	held := r.held
	if held != nil {
		r.waits++
	}
	r.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if r.held == held {
			r.waits--
		}
		r.mu.Unlock()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if row == nil || row.OrganizationId != organization || kafka.PartitionOf(row.EndpointId, streamtest.Partitions) != partition {
		return nil, archive.ErrNotFound
	}
	return &archive.Delivery{Row: proto.CloneOf(row), Event: &webhooksv1.OutboundEvent{
		Id: row.EventId, OrganizationId: organization, Type: row.EventType, AcceptedUnixMs: row.AcceptedUnixMs, Body: body,
	}}, nil
}

func (r *record) holding() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waits
}

// holdBack keeps what is asked for from being found until release.
func (r *record) holdBack() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = make(chan struct{})
}

func (r *record) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held != nil {
		close(r.held)
	}
	r.held, r.waits = nil, 0
}

// table stands in for the copy of `endpoints`.
type table struct {
	mu   sync.Mutex
	rows map[string][]byte
}

func (c *table) Get(key []byte) ([]byte, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.rows[string(key)]
	return v, ok, nil
}

func (c *table) put(key string, m proto.Message) {
	value, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rows[key] = value
}

// endpointID is an endpoint's in the partition under test.
func endpointID(name string) string {
	for i := 0; ; i++ {
		key := id.Derive(id.Endpoint, name, fmt.Sprint(i))
		if kafka.PartitionOf(key, streamtest.Partitions) == 0 {
			return key
		}
	}
}

// endpoint writes an endpoint, a version newer than before, and returns its id.
func (w *world) endpoint(name string, change func(*webhooksv1.Endpoint)) string {
	w.t.Helper()
	key := endpointID(name)
	sealed, err := w.ring.Seal([]byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAA"), seal.EndpointSecret(key))
	require.NoError(w.t, err)
	ep := &webhooksv1.Endpoint{
		Id: key, OrganizationId: org, Url: "http://127.0.0.1:9/" + name, Enabled: true, Concurrency: 16, TimeoutMs: 1000,
		Secrets: []*webhooksv1.SigningSecret{{SealedSecret: sealed}}, Version: 1,
	}
	if old, ok, _ := w.endpoints.Get([]byte(org + "/" + key)); ok {
		var before webhooksv1.Endpoint
		require.NoError(w.t, proto.Unmarshal(old, &before))
		ep.Version = before.Version + 1
	}
	if change != nil {
		change(ep)
	}
	w.endpoints.put(org+"/"+key, ep)
	w.d.EndpointChanged([]byte(org+"/"+key), nil)
	return key
}

func (w *world) removeEndpoint(key string) {
	w.endpoints.mu.Lock()
	delete(w.endpoints.rows, org+"/"+key)
	w.endpoints.mu.Unlock()
	w.d.EndpointChanged([]byte(org+"/"+key), nil)
}

func dlv(event, endpoint string) string { return id.Derive(id.Delivery, event, endpoint, "") }

// event is a record of `deliveries`: one event for endpoints.
func (w *world) event(name string, endpoints ...string) *kgo.Record {
	return w.eventOf("order.created", name, endpoints...)
}

func (w *world) eventOf(kind, name string, endpoints ...string) *kgo.Record {
	w.t.Helper()
	d := &webhooksv1.Deliveries{
		Event: &webhooksv1.OutboundEvent{
			Id: id.Derive(id.Event, name), OrganizationId: org, Type: kind,
			AcceptedUnixMs: w.Now.UnixMilli(), Body: []byte(`{"id":"` + name + `"}`),
		},
		CreatedUnixMs: w.Now.UnixMilli() + 1,
	}
	w.archive.mu.Lock()
	w.archive.bodies[d.Event.Id] = d.Event.Body
	w.archive.mu.Unlock()
	for _, ep := range endpoints {
		d.Targets = append(d.Targets, &webhooksv1.Target{DeliveryId: dlv(name, ep), EndpointId: ep, EndpointVersion: 1})
	}
	value, err := proto.Marshal(d)
	require.NoError(w.t, err)
	return &kgo.Record{Value: value}
}

// settle runs transactions at the present time until the task asks for no more and nothing is under way, and returns
// all that they produced.
func (w *world) settle(out streamtest.Outputs) streamtest.Outputs {
	w.t.Helper()
	for range 1000 {
		w.quiet()
		if !w.Woken() {
			require.Empty(w.t, w.d.Stranded(), "have something to do, and will not be looked at")
			return out
		}
		out = append(out, w.Commit()...)
	}
	require.FailNow(w.t, "the task does not come to rest")
	return nil
}

// quiet returns when every attempt that was begun has ended, but for those that a test holds.
func (w *world) quiet() {
	w.t.Helper()
	w.receiver.clock.Store(w.Now.UnixNano())
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		begun, queued := w.d.InFlight()
		held := w.receiver.holding()
		if begun == held+queued && (queued == 0 || held == w.workers) && w.d.Searching() == w.archive.holding() && w.d.Reading() == 0 {
			return
		}
		require.True(w.t, time.Now().Before(deadline), "attempts do not end: %d begun, %d of them queued, %d held", begun, queued, held)
	}
}

// pass moves the clock to a time and comes to rest there.
func (w *world) pass(d time.Duration) streamtest.Outputs {
	w.t.Helper()
	w.receiver.clock.Store(w.Now.Add(d).UnixNano())
	return w.settle(w.Advance(w.Now.Add(d)))
}

// receiver answers attempts as tests say.
type receiver struct {
	clock atomic.Int64 // Unix ns

	mu      sync.Mutex
	answers map[string]func(m *sender.Message) sender.Result // by body
	all     func(m *sender.Message) sender.Result
	held    map[string]chan struct{} // by body: not answered before it is closed
	waiters map[string]int           // by body: attempts that are held
	heldAll chan struct{}            // whatever comes is not answered before it is closed
	begun   func(m *sender.Message)  // unless it is nil
	seen    []sent
}

type sent struct {
	delivery string
	number   uint32
	body     string
}

func newReceiver() *receiver {
	r := &receiver{answers: map[string]func(*sender.Message) sender.Result{}, held: map[string]chan struct{}{}, waiters: map[string]int{}}
	r.all = func(*sender.Message) sender.Result { return sender.Result{StatusCode: 200} }
	return r
}

func (r *receiver) Send(_ *sender.Destination, m *sender.Message) sender.Result {
	r.mu.Lock()
	r.seen = append(r.seen, sent{m.DeliveryID, m.Number, string(m.Body)})
	if r.begun != nil {
		r.begun(m)
	}
	hold, answer := r.held[string(m.Body)], r.all
	if r.heldAll != nil && hold == nil {
		r.held[string(m.Body)] = r.heldAll
		hold = r.heldAll
	}
	if special := r.answers[string(m.Body)]; special != nil {
		answer = special
	}
	if hold != nil {
		r.waiters[string(m.Body)]++
		r.mu.Unlock()
		<-hold
		r.mu.Lock()
	}
	r.mu.Unlock()
	res := answer(m)
	if res.Started.IsZero() {
		res.Started = time.Unix(0, r.clock.Load())
	}
	return res
}

// holding is how many attempts are kept from ending.
func (r *receiver) holding() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, waiters := range r.waiters {
		n += waiters
	}
	return n
}

// holdBack keeps the answers to an event until release.
func (r *receiver) holdBack(name string) { r.holdBody(`{"id":"` + name + `"}`) }

func (r *receiver) holdBody(body string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[body] = make(chan struct{})
}

func (r *receiver) release(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.letGo(`{"id":"` + name + `"}`)
}

func (r *receiver) releaseAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.held {
		r.letGo(key)
	}
}

// holdAll keeps all answers until letAllGo.
func (r *receiver) holdAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heldAll = make(chan struct{})
}

func (r *receiver) letAllGo() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.heldAll)
	r.heldAll = nil
	clear(r.held)
	clear(r.waiters)
}

func (r *receiver) letGo(key string) {
	close(r.held[key])
	delete(r.held, key)
	delete(r.waiters, key)
}

// answer has every attempt answered by a status.
func (r *receiver) answer(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	class := map[int]sender.Class{200: sender.None, 410: sender.HTTP410, 429: sender.HTTP429, 500: sender.HTTP5xx, 503: sender.HTTP5xx}
	r.all = func(*sender.Message) sender.Result { return sender.Result{StatusCode: status, Class: class[status]} }
}

func (r *receiver) sent() []sent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]sent(nil), r.seen...)
}

// attempts decodes the rows of attempts among outputs.
func attempts(t streamtest.TB, out streamtest.Outputs) []*webhooksv1.AttemptRow {
	return rows(t, out, schemas.Attempts, func() *webhooksv1.AttemptRow { return new(webhooksv1.AttemptRow) })
}

func deliveries(t streamtest.TB, out streamtest.Outputs) []*webhooksv1.DeliveryRow {
	return rows(t, out, schemas.DeliveryRows, func() *webhooksv1.DeliveryRow { return new(webhooksv1.DeliveryRow) })
}

func dead(t streamtest.TB, out streamtest.Outputs) []*webhooksv1.DeadDelivery {
	return rows(t, out, schemas.DeliveriesDead, func() *webhooksv1.DeadDelivery { return new(webhooksv1.DeadDelivery) })
}

func rows[M proto.Message](t streamtest.TB, out streamtest.Outputs, topic string, make func() M) []M {
	t.Helper()
	var all []M
	for _, r := range out.Topic(topic) {
		m := make()
		require.NoError(t, proto.Unmarshal(r.Value, m))
		all = append(all, m)
	}
	return all
}

// waiting lists the states in the schedule.
func (w *world) waiting() map[string]*webhooksv1.WaitingState {
	w.t.Helper()
	states := map[string]*webhooksv1.WaitingState{}
	payloads := 0
	for _, key := range w.Keys(schemas.Retries) {
		switch key[:2] {
		case "p/":
			payloads++
			continue
		case "c/":
			continue
		}
		s := new(webhooksv1.WaitingState)
		require.NoError(w.t, proto.Unmarshal(w.Get(schemas.Retries, []byte(key)), s))
		states[key[2:]] = s
	}
	require.Equal(w.t, len(states), payloads, "each waiting delivery has a payload")
	return states
}

func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%03d", prefix, i)
	}
	return out
}
