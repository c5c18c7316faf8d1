package alerts

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/testenv"
)

// strict is an Alertmanager, at the other end of its client, that refuses a request whole for one alert that it does not
// like.
type strict struct {
	*manager
	log      *buffer
	refuses  func(invoice string) int // the status it answers, 0 where it takes the alert
	requests int
	taken    map[string]int // invoices
}

func newStrict(t *testing.T, refuses func(invoice string) int) *strict {
	s := &strict{log: &buffer{}, refuses: refuses, taken: map[string]int{}}
	s.manager = newTestManager(t, "http://alertmanager", s.log)
	s.client.Transport = s
	return s
}

func newTestManager(t *testing.T, url string, log io.Writer) *manager {
	m, err := newManager(url, slog.New(slog.NewTextHandler(log, nil)),
		newMetrics(prometheus.NewRegistry(), func() int { return 0 }))
	require.NoError(t, err)
	return m
}

// RoundTrip answers a request.
func (s *strict) RoundTrip(r *http.Request) (*http.Response, error) {
	s.requests++
	var alerts []alert
	if err := json.NewDecoder(r.Body).Decode(&alerts); err != nil {
		return nil, err
	}
	for _, a := range alerts {
		if status := s.refuses(a.Labels["invoice_id"]); status != 0 {
			return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Body: http.NoBody}, nil
		}
	}
	for _, a := range alerts {
		s.taken[a.Labels["invoice_id"]]++
	}
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

// counts are of alerts by result: sent, refused, failed.
func (m *manager) counts(t *testing.T) (counts [3]float64) {
	for i, counter := range []prometheus.Counter{m.metrics.sent, m.metrics.refused, m.metrics.failed} {
		var out dto.Metric
		require.NoError(t, counter.Write(&out))
		counts[i] = out.GetCounter().GetValue()
	}
	return counts
}

// invoices makes the alerts of in_0, in_1, …
func invoices(n int) (list []alert) {
	for i := range n {
		list = append(list, alertOf(&told{organization: "org_of_" + fmt.Sprint(i), invoice: open(fmt.Sprint("in_", i))}, start))
	}
	return list
}

func only(status int, bad ...string) func(string) int {
	return func(invoice string) int {
		for _, b := range bad {
			if b == invoice {
				return status
			}
		}
		return 0
	}
}

func TestOnlyWhatIsRefusedIsNotTold(t *testing.T) {
	for _, status := range []int{400, 413, 422} {
		s := newStrict(t, only(status, "in_0", "in_1", "in_1199"))
		s.send(t.Context(), invoices(1200))
		require.Len(t, s.taken, 1197)
		for _, n := range s.taken {
			require.Equal(t, 1, n)
		}
		require.Equal(t, [3]float64{1197, 3, 0}, s.counts(t))
		for _, bad := range []string{"org=org_of_0 invoice=in_0 ", "org=org_of_1 invoice=in_1 ", "org=org_of_1199 invoice=in_1199 "} {
			require.Contains(t, s.log.String(), bad)
		}
		require.NotContains(t, s.log.String(), "invoice=in_2 ")
	}
}

func TestWhatWasRefusedIsTriedAgainByItself(t *testing.T) {
	s := newStrict(t, only(400, "in_7", "in_8"))
	s.send(t.Context(), invoices(1000))
	said := s.log.String()
	s.requests = 0
	s.send(t.Context(), invoices(1000))
	require.Equal(t, 2+2, s.requests, "998 in two requests, and each of the two")
	require.Equal(t, said, s.log.String(), "said once")

	s.refuses = only(400, "in_8")
	s.send(t.Context(), invoices(1000))
	require.Equal(t, 1, s.taken["in_7"])
	s.requests = 0
	s.send(t.Context(), invoices(1000))
	require.Equal(t, 2+1, s.requests)
	require.Equal(t, 2, s.taken["in_7"], "it is one of all again")
}

func TestAnAlertmanagerThatRefusesEverythingIsAskedWithinBounds(t *testing.T) {
	s := newStrict(t, func(string) int { return 400 })
	for range 30 {
		s.requests = 0
		s.send(t.Context(), invoices(600))
		require.Less(t, s.requests, maxRefusals+20)
	}
	require.Len(t, s.refused, 600, "in the end each is known")
	require.Empty(t, s.taken)
}

// What an Alertmanager answers that is not about the alerts says nothing about the next ones either.
func TestAFailureEndsTheRound(t *testing.T) {
	for _, status := range []int{500, 503, 429, 401, 404} {
		s := newStrict(t, only(status, "in_700"))
		s.send(t.Context(), invoices(1200))
		require.Equal(t, [3]float64{500, 0, 700}, s.counts(t), status)
		require.Equal(t, 2, s.requests)
		s.refuses = only(0)
		s.send(t.Context(), invoices(1200))
		require.Equal(t, 1, s.taken["in_700"])
		require.Contains(t, s.log.String(), "takes alerts again")
	}
}

// An Alertmanager refuses an alert without labels, or one that ends before it starts.
func TestAnAlertmanagerThatRefusesIsToldTheRest(t *testing.T) {
	server := testenv.NewAlertmanager(t, "http://127.0.0.1:1")
	log := &buffer{}
	m := newTestManager(t, server.URL, log)
	list := invoices(1100)
	for i := range list {
		list[i].StartsAt, list[i].EndsAt = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	}
	list[3].Labels = map[string]string{"invoice_id": ""}
	list[600].EndsAt = list[600].StartsAt.Add(-time.Second)
	m.send(t.Context(), list)
	testenv.Eventually(t, patience, func() bool { return len(server.Active(t)) == 1098 }, "all others are active")
	require.Equal(t, [3]float64{1098, 2, 0}, m.counts(t))
	require.Contains(t, log.String(), "org=org_of_600 invoice=in_600 ")
}
