package dispatch_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func (w *world) retry(event, ep string) *kgo.Record {
	w.t.Helper()
	return w.asked(func(cmd *webhooksv1.Command) {
		cmd.Action = &webhooksv1.Command_RetryDelivery{RetryDelivery: &webhooksv1.RetryDelivery{DeliveryId: dlv(event, ep), EndpointId: ep}}
	})
}

// exhaust has a delivery die of its three attempts.
func (w *world) exhaust(event, ep string) {
	w.t.Helper()
	w.receiver.answer(500)
	w.settle(w.Process(w.event(event, ep)))
	w.pass(5 * time.Second)
	require.Equal(w.t, "dead", deliveries(w.t, w.pass(time.Minute))[0].Status)
	w.receiver.answer(200)
}

// triggers of attempts, with their numbers.
func triggers(t streamtest.TB, out streamtest.Outputs) (all []string) {
	for _, a := range attempts(t, out) {
		all = append(all, fmt.Sprint(a.Number, " ", a.Trigger))
	}
	return all
}

// answered is the delivery that the only answer among outputs shows.
func answered(t streamtest.TB, out streamtest.Outputs) *webhooksv1.Delivery {
	t.Helper()
	require.Len(t, outcomes(t, out), 1)
	require.NotNil(t, outcomes(t, out)[0].GetDelivery(), "%v", outcomes(t, out)[0])
	return outcomes(t, out)[0].GetDelivery()
}

// refusal is the code of the only answer among outputs.
func refusal(t streamtest.TB, out streamtest.Outputs) string {
	t.Helper()
	require.Len(t, outcomes(t, out), 1)
	return outcomes(t, out)[0].GetRefusal().GetCode()
}

// versions are those of rows of deliveries.
func versions(t streamtest.TB, out streamtest.Outputs) (all []uint64) {
	for _, row := range deliveries(t, out) {
		all = append(all, row.Version)
	}
	return all
}

func TestRetryOfADeliveryThatWaits(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e1", ep)))
	w.pass(5 * time.Second)
	require.EqualValues(t, 2, w.waiting()[dlv("e1", ep)].ScheduleStep)

	w.Now = w.Now.Add(time.Second)
	out := w.settle(w.Process(w.retry("e1", ep)))
	require.Equal(t, []string{"3 manual"}, triggers(t, out))
	d := answered(t, out)
	require.Equal(t, "waiting", d.Status)
	require.EqualValues(t, 2, d.AttemptCount)
	require.EqualValues(t, w.Now.UnixMilli(), d.NextAttemptUnixMs)
	require.Equal(t, []uint64{4, 5}, versions(t, out), "due now, then what the attempt made of it")

	require.EqualValues(t, 1, w.waiting()[dlv("e1", ep)].ScheduleStep, "the schedule from its start")
	require.Equal(t, []string{"4 schedule"}, triggers(t, w.pass(5*time.Second)))
	out = w.pass(time.Minute)
	require.Equal(t, []string{"5 schedule"}, triggers(t, out))
	require.Equal(t, "exhausted", deliveries(t, out)[0].Reason)
}

func TestRetryOfADeliveryThatDied(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.exhaust("e1", ep)
	out := w.settle(w.Process(w.retry("e1", ep)))
	require.Equal(t, []string{"4 manual"}, triggers(t, out))
	d := answered(t, out)
	require.Equal(t, "waiting", d.Status)
	require.EqualValues(t, 3, d.AttemptCount)
	require.Zero(t, d.EndedUnixMs)
	require.Empty(t, d.Reason)
	require.Equal(t, []uint64{5, 6}, versions(t, out))
	last := deliveries(t, out)[1]
	require.Equal(t, "delivered", last.Status)
	require.EqualValues(t, 4, last.AttemptCount)
	require.Equal(t, deliveries(t, out)[0].CreatedUnixMs, last.CreatedUnixMs)
	require.Empty(t, w.Keys(schemas.Retries))
	for _, s := range w.receiver.sent() {
		require.Equal(t, `{"id":"e1"}`, s.body)
	}
	require.EqualValues(t, 2, w.Watermark())
}

// The events that tell of it are two: receivers drop an id that they know.
func TestADeliveryIsExhaustedAgain(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	out := w.settle(w.Process(w.event("e1", ep)))
	out = append(out, w.pass(5*time.Second)...)
	out = append(out, w.pass(time.Minute)...)
	out = append(out, w.settle(w.Process(w.retry("e1", ep)))...)
	out = append(out, w.pass(5*time.Second)...)
	out = append(out, w.pass(time.Minute)...)
	told := out.Topic(schemas.Events)
	require.Len(t, told, 2)
	require.NotEqual(t, header(told[0], schemas.HeaderID), header(told[1], schemas.HeaderID))
}

func TestARetryThatFailsGoesOnByTheSchedule(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.exhaust("e1", ep)
	w.receiver.answer(500)
	out := w.settle(w.Process(w.retry("e1", ep)))
	out = append(out, w.pass(5*time.Second)...)
	out = append(out, w.pass(time.Minute)...)
	require.Equal(t, []string{"4 manual", "5 schedule", "6 schedule"}, triggers(t, out))
	require.Equal(t, []uint64{5, 6, 7, 8}, versions(t, out))
	require.Len(t, dead(t, out), 1, "it died once more")
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestADeliveredDeliveryStaysDelivered(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	first := deliveries(t, w.settle(w.Process(w.event("e1", ep))))[0]
	w.receiver.answer(500)
	w.Now = w.Now.Add(time.Hour)
	out := w.settle(w.Process(w.retry("e1", ep)))
	require.Equal(t, "delivered", answered(t, out).Status)
	require.EqualValues(t, w.Now.UnixMilli(), answered(t, out).NextAttemptUnixMs)
	out = append(out, w.pass(5*time.Second)...)
	out = append(out, w.pass(time.Minute)...)
	require.Equal(t, []string{"2 manual", "3 schedule", "4 schedule"}, triggers(t, out))
	require.Equal(t, []uint64{3, 4, 5, 6}, versions(t, out))
	for _, row := range deliveries(t, out) {
		require.Equal(t, "delivered", row.Status)
		require.Empty(t, row.Reason)
		require.Equal(t, first.EndedUnixMs, row.EndedUnixMs)
	}
	for _, a := range attempts(t, out) {
		require.Equal(t, "delivered", a.DeliveryStatus)
	}
	require.Zero(t, deliveries(t, out)[3].NextAttemptUnixMs)
	require.Empty(t, dead(t, out))
	require.Empty(t, out.Topic(schemas.Events), "it is not exhausted")
	require.Empty(t, w.Keys(schemas.Retries))
	require.EqualValues(t, 1, w.metric("webhooks_deliveries_ended_total", "delivered"))
	require.Zero(t, w.metric("webhooks_deliveries_ended_total", "dead"))
}

func TestRetryOfADeliveryThatIsBeingAttempted(t *testing.T) {
	for _, pulled := range []bool{false, true} {
		for _, success := range []bool{false, true} {
			t.Run(fmt.Sprintf("pulled %v, success %v", pulled, success), func(t *testing.T) {
				w := newWorld(t, nil)
				ep := w.endpoint("a", nil)
				if pulled {
					w.receiver.answer(500)
					w.settle(w.Process(w.event("e1", ep)))
				}
				w.receiver.answer(map[bool]int{false: 500, true: 200}[success])
				if pulled {
					w.receiver.holdBack("e1")
					w.pass(5 * time.Second)
				} else {
					w.receiver.holdBack("e1")
					w.settle(w.Process(w.event("e1", ep)))
				}
				before := len(w.receiver.sent())
				out := w.settle(w.Process(w.retry("e1", ep)))
				require.Empty(t, outcomes(t, out), "it waits for the attempt")
				require.Len(t, w.receiver.sent(), before)
				w.receiver.release("e1")
				out = w.settle(out)
				require.EqualValues(t, before, attempts(t, out)[0].Number)
				require.Equal(t, "schedule", attempts(t, out)[0].Trigger, "it began before")
				require.Len(t, attempts(t, out), 2, "another was asked for")
				require.Equal(t, "manual", attempts(t, out)[1].Trigger)
				require.EqualValues(t, before+1, attempts(t, out)[1].Number)
				if success {
					require.Equal(t, "delivered", answered(t, out).Status)
					require.EqualValues(t, before, answered(t, out).AttemptCount)
					require.Empty(t, w.Keys(schemas.Retries))
					return
				}
				require.Equal(t, "waiting", answered(t, out).Status)
				require.EqualValues(t, 1, w.waiting()[dlv("e1", ep)].ScheduleStep)
			})
		}
	}
}

// All that was asked for while an attempt ran is one attempt more, and what fails of it changes nothing.
func TestRetriesOfAnAttemptThatDelivers(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	require.Empty(t, outcomes(t, w.settle(w.Process(w.retry("e1", ep), w.retry("e1", ep)))))
	w.receiver.release("e1")
	w.quiet()
	w.archive.holdBack()
	out := w.settle(w.Commit())
	require.Equal(t, []string{"1 schedule"}, triggers(t, out))
	require.Empty(t, outcomes(t, out), "they wait for the record")
	w.receiver.answer(500)
	w.archive.release()
	out = w.settle(w.Commit())
	require.Len(t, outcomes(t, out), 2)
	require.Equal(t, []string{"2 manual"}, triggers(t, out))
	last := w.archive.rows[dlv("e1", ep)]
	require.Equal(t, "delivered", last.Status)
	require.EqualValues(t, 2, last.AttemptCount)
	require.NotZero(t, last.NextAttemptUnixMs, "it goes by the schedule")
}

// What would have been the last attempt is not, when another was asked for while it ran.
func TestRetryOfTheLastAttempt(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.RetrySchedule = &webhooksv1.RetrySchedule{} })
	w.receiver.answer(500)
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	w.settle(w.Process(w.retry("e1", ep)))
	w.receiver.release("e1")
	out := w.settle(w.Commit())
	require.Equal(t, []string{"1 schedule", "2 manual"}, triggers(t, out))
	require.Len(t, dead(t, out), 1, "of the second")
	require.Len(t, out.Topic(schemas.Events), 1)
}

func TestRetryOfADeliveryInTheQueue(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.answer(500)
	w.receiver.holdBack("e0")
	w.settle(w.Process(w.event("e0", ep), w.event("e1", ep)))
	out := w.settle(w.Process(w.retry("e1", ep)))
	require.Equal(t, "waiting", answered(t, out).Status)
	w.receiver.release("e0")
	out = w.settle(w.Commit())
	require.Len(t, attempts(t, out), 2, "the first attempt is the one that comes at once")

	// Out of the schedule.
	w.receiver.holdBack("e0")
	w.receiver.holdBack("e1")
	w.pass(5 * time.Second)
	running, queued := "e0", "e1"
	if last := w.receiver.sent()[2]; last.body == `{"id":"e1"}` {
		running, queued = queued, running
	}
	require.EqualValues(t, 1, w.waiting()[dlv(queued, ep)].ScheduleStep)
	out = w.settle(w.Process(w.retry(queued, ep)))
	require.Equal(t, "waiting", answered(t, out).Status)
	require.Zero(t, w.waiting()[dlv(queued, ep)].ScheduleStep)
	w.receiver.release(running)
	w.receiver.release(queued)
	out = w.settle(w.Commit())
	require.Equal(t, []string{"2 schedule", "2 manual"}, triggers(t, out))
	require.EqualValues(t, 1, w.waiting()[dlv(queued, ep)].ScheduleStep)
	require.EqualValues(t, 2, w.waiting()[dlv(running, ep)].ScheduleStep)
}

func TestTwoRetriesAtOnceAreOneAttempt(t *testing.T) {
	for name, prepare := range map[string]func(*world, string){
		"waiting": func(w *world, ep string) {
			w.receiver.answer(500)
			w.settle(w.Process(w.event("e1", ep)))
			w.receiver.answer(200)
		},
		"dead":      func(w *world, ep string) { w.exhaust("e1", ep) },
		"delivered": func(w *world, ep string) { w.settle(w.Process(w.event("e1", ep))) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			prepare(w, ep)
			sent := len(w.receiver.sent())
			out := w.settle(w.Process(w.retry("e1", ep), w.retry("e1", ep)))
			require.Len(t, outcomes(t, out), 2)
			for _, o := range outcomes(t, out) {
				require.Equal(t, dlv("e1", ep), o.GetDelivery().GetId())
			}
			require.Equal(t, []string{fmt.Sprint(sent+1, " manual")}, triggers(t, out))
			require.Len(t, w.receiver.sent(), sent+1)

			out = w.settle(w.Process(w.retry("e1", ep)))
			require.Equal(t, []string{fmt.Sprint(sent+2, " manual")}, triggers(t, out), "one after it is another")
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
}

func TestARetryPassesThoseThatWaitLonger(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
	var records []*kgo.Record
	for _, name := range names("e", 100) {
		records = append(records, w.event(name, ep))
	}
	w.settle(w.Process(records...))
	w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.holdBack("e000")
	w.settle(w.Commit())
	before := len(w.receiver.sent())
	w.settle(w.Process(w.retry("e099", ep)))
	require.Contains(t, w.waiting()[dlv("e099", ep)].String(), "manual")
	require.True(t, w.waiting()[dlv("e099", ep)].Started, "it is in hand")
	w.receiver.releaseAll()
	out := w.settle(w.Commit())
	place := 0
	for i, a := range attempts(t, out) {
		if a.DeliveryId == dlv("e099", ep) {
			place = i
			require.Equal(t, "manual", a.Trigger)
		}
	}
	require.Less(t, place+before, 10)
}

func TestRetryAndItsEndpoint(t *testing.T) {
	for name, c := range map[string]struct {
		close  func(w *world, ep string)
		status string
		reason string
	}{
		"disabled": {func(w *world, _ string) { w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Enabled = false }) }, "dead", "endpoint_disabled"},
		"deleted":  {func(w *world, ep string) { w.removeEndpoint(ep) }, "dead", "endpoint_deleted"},
	} {
		for _, delivered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, delivered %v", name, delivered), func(t *testing.T) {
				w := newWorld(t, nil)
				ep := w.endpoint("a", nil)
				if delivered {
					w.settle(w.Process(w.event("e1", ep)))
				} else {
					w.exhaust("e1", ep)
				}
				c.close(w, ep)
				out := w.settle(w.Process(w.retry("e1", ep)))
				answered(t, out)
				require.Empty(t, attempts(t, out), "nothing is sent")
				last := deliveries(t, out)[len(deliveries(t, out))-1]
				if delivered {
					require.Equal(t, "delivered", last.Status)
					require.Empty(t, last.Reason)
				} else {
					require.Equal(t, c.status, last.Status)
					require.Equal(t, c.reason, last.Reason)
				}
				require.Zero(t, last.NextAttemptUnixMs)
				require.Empty(t, w.Keys(schemas.Retries))
			})
		}
	}
	t.Run("paused", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.endpoint("a", nil)
		w.exhaust("e1", ep)
		w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
		out := w.settle(w.Process(w.retry("e1", ep)))
		require.Equal(t, "waiting", answered(t, out).Status)
		require.Empty(t, attempts(t, out))
		w.endpoint("a", nil)
		require.Equal(t, []string{"4 manual"}, triggers(t, w.settle(w.Commit())))
	})
}

func TestRetryThatIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	ep, other := w.endpoint("a", nil), w.endpoint("b", nil)
	w.exhaust("e1", ep)
	unmatched := &webhooksv1.DeliveryRow{DeliveryId: dlv("e2", ep), OrganizationId: org, EndpointId: ep, Status: schemas.DeliveryUnmatched, Version: 1}
	tested := &webhooksv1.DeliveryRow{DeliveryId: dlv("e3", ep), OrganizationId: org, EndpointId: ep, Status: "delivered", Test: true, Version: 1}
	w.archive.insert([]*webhooksv1.DeliveryRow{unmatched, tested})
	foreign := func(delivery, endpoint string) *kgo.Record {
		return w.asked(func(cmd *webhooksv1.Command) {
			cmd.Action = &webhooksv1.Command_RetryDelivery{RetryDelivery: &webhooksv1.RetryDelivery{DeliveryId: delivery, EndpointId: endpoint}}
		})
	}
	elsewhere := ""
	for i := 0; elsewhere == ""; i++ {
		if key := id.Derive(id.Endpoint, fmt.Sprint(i)); kafka.PartitionOf(key, streamtest.Partitions) != 0 {
			elsewhere = key
		}
	}
	for name, c := range map[string]struct {
		asked *kgo.Record
		code  string
	}{
		"unknown":                {w.retry("e9", ep), "not_found"},
		"unmatched":              {w.retry("e2", ep), "not_found"},
		"a test":                 {w.retry("e3", ep), "test_delivery"},
		"of another endpoint":    {foreign(dlv("e1", ep), other), "not_found"},
		"no delivery":            {foreign("dlv_1", ep), "malformed_command"},
		"of another's partition": {foreign(dlv("e1", ep), elsewhere), "malformed_command"},
		"no endpoint":            {foreign(dlv("e1", ep), ""), "malformed_command"},
	} {
		t.Run(name, func(t *testing.T) {
			out := w.settle(w.Process(c.asked))
			require.Equal(t, c.code, refusal(t, out))
			require.Empty(t, attempts(t, out))
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
	require.EqualValues(t, 7, w.metric("webhooks_delivery_commands_total", "retry", "refused"))
}

func TestAForeignCommandBehindOneThatWaitsIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	foreign := w.asked(func(cmd *webhooksv1.Command) {
		cmd.OrganizationId = "org_2"
		cmd.Action = &webhooksv1.Command_RetryDelivery{RetryDelivery: &webhooksv1.RetryDelivery{DeliveryId: dlv("e1", ep), EndpointId: ep}}
	})
	require.Empty(t, outcomes(t, w.settle(w.Process(w.retry("e1", ep), foreign))))
	w.receiver.release("e1")
	out := outcomes(t, w.settle(w.Commit()))
	require.Len(t, out, 2)
	require.Equal(t, "delivered", out[0].GetDelivery().GetStatus())
	require.Equal(t, "not_found", out[1].GetRefusal().GetCode())
}

func TestARetryWaitsForTheRecordAndHoldsUpNothing(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.exhaust("e1", ep)
	w.archive.holdBack()
	out := w.settle(w.Process(w.retry("e1", ep)))
	out = append(out, w.pass(time.Hour)...)
	require.Empty(t, outcomes(t, out))
	require.Len(t, w.receiver.sent(), 3)
	require.EqualValues(t, 2, w.Watermark(), "its record is done")
	require.Len(t, attempts(t, w.settle(w.Process(w.event("e2", ep)))), 1)
	w.archive.release()
	out = w.settle(w.Commit())
	answered(t, out)
	require.Equal(t, []string{"4 manual"}, triggers(t, out))
	require.Equal(t, 1, w.archive.asked)
}

func TestManyRetriesLookInTheRecordAFewAtATime(t *testing.T) {
	for name, ask := range map[string]func(w *world, retries []*kgo.Record){
		"at once": func(w *world, retries []*kgo.Record) { w.settle(w.Process(retries...)) },
		"one by one": func(w *world, retries []*kgo.Record) {
			for _, r := range retries {
				w.settle(w.Process(r))
			}
		},
		"with aborts": func(w *world, retries []*kgo.Record) {
			for _, r := range retries {
				w.Abort(r)
				w.settle(w.Redeliver())
			}
		},
		"aborted as they go on": func(w *world, retries []*kgo.Record) {
			w.settle(w.Process(retries...))
			for range 20 {
				w.Abort()
			}
			w.settle(w.Commit())
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			var events, retries []*kgo.Record
			for _, name := range names("e", 50) {
				events = append(events, w.event(name, ep))
				retries = append(retries, w.retry(name, ep))
			}
			w.settle(w.Process(events...))
			w.archive.holdBack()
			ask(w, retries)
			require.Equal(t, 16, w.archive.holding())
			require.Equal(t, 34, w.d.ToSearch(), "each is in line once")
			w.archive.release()
			w.quiet()
			w.Abort()
			out := w.settle(w.Commit())
			require.Len(t, outcomes(t, out), 50)
			require.Len(t, attempts(t, out), 50)
			require.Equal(t, []string{"2 manual"}, slices.Compact(triggers(t, out)))
			require.Zero(t, w.d.ToSearch())
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
}

// Whose delivery came in after all is in line for nothing.
func TestTheLineToTheRecordIsPassedByThoseThatNeedItNoMore(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.archive.holdBack()
	var searched, late, events []*kgo.Record
	for _, name := range names("x", 16) {
		searched = append(searched, w.retry(name, ep))
	}
	for _, name := range names("e", 40) {
		late, events = append(late, w.retry(name, ep)), append(events, w.event(name, ep))
	}
	w.settle(w.Process(searched...))
	w.settle(w.Process(late...))
	w.settle(w.Process(w.retry("y", ep)))
	require.Equal(t, 41, w.d.ToSearch())
	require.Len(t, outcomes(t, w.settle(w.Process(events...))), 40)
	w.archive.release()
	w.quiet()
	w.Commit()
	require.Zero(t, w.d.ToSearch(), "all that were in line had their turn at once")
	require.Equal(t, "not_found", refusal(t, w.settle(w.Commit())))
	require.Empty(t, w.Keys(schemas.Retries))
}
