package delivery

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// verdict is what the judge found.
type verdict struct {
	deliveries, attempts, requests int
	ended                          map[string]int // by status and reason
	// Requests of a number that had come before: after a fault, most of them after one, or again within the attempt because
	// the connection was stale. marked are rows that say so, needless those of them that came once.
	afterFault, most, stale, marked, needless int
	// unseen are attempts that failed on their way to the receiver, starved those that timed out though it answered.
	unseen, starved int
	// times from a delivery's making until its first request, of prompt endpoints under steady load.
	times []time.Duration

	// differences are told one by one, so many of them, but all are counted.
	differences []string
	count       int
}

// tellAtMost bounds the differences that are told.
const tellAtMost = 20

func (v *verdict) differ(what, format string, args ...any) {
	if v.count++; v.count <= tellAtMost {
		v.differences = append(v.differences, what+": "+fmt.Sprintf(format, args...))
	}
}

// judge compares.
type judge struct {
	*verdict
	*evidence
	senders senders
	// commits are when owners wrote rows of attempts, in order.
	commits map[owner][]time.Time
	// after counts what was sent again, by fault.
	after map[int]int
	// byDelivery are the rows of attempts, by number.
	byDelivery map[string][]*webhooksv1.AttemptRow
	// gone counts the deliveries that ended with 410, by endpoint; ledgers are what ClickHouse's must say.
	gone    map[string]int
	ledgers map[string]line
}

func (r *run) judge(ctx context.Context) error {
	ev, err := r.evidence(ctx)
	if err != nil {
		return err
	}
	j := newJudge(ev)
	j.run()
	j.measure(r.report.timedFrom)
	r.report.verdict = j.verdict
	r.report.P99 = percentile(j.times, .99)
	r.report.weigh(r.watch)
	r.report.Rebalances, err = r.cluster.Rebalances(ctx, append(groups, sinkGroups()...))
	return err
}

func newJudge(ev *evidence) *judge {
	j := &judge{
		verdict: &verdict{ended: map[string]int{}}, evidence: ev,
		commits: map[owner][]time.Time{}, after: map[int]int{}, byDelivery: map[string][]*webhooksv1.AttemptRow{}, gone: map[string]int{}, ledgers: map[string]line{},
	}
	for at, r := range ev.attemptLog {
		by := owner{r.attempt.Worker, at.partition}
		j.commits[by] = append(j.commits[by], r.written)
		j.byDelivery[r.attempt.DeliveryId] = append(j.byDelivery[r.attempt.DeliveryId], r.attempt)
	}
	for _, commits := range j.commits {
		slices.SortFunc(commits, time.Time.Compare)
	}
	for _, rows := range j.byDelivery {
		slices.SortFunc(rows, func(a, b *webhooksv1.AttemptRow) int { return cmp.Compare(a.Number, b.Number) })
	}
	for _, all := range ev.came {
		slices.SortFunc(all, func(a, b request) int { return a.arrived.Compare(b.arrived) })
		j.requests += len(all)
	}
	j.senders = newSenders(ev)
	return j
}

func (j *judge) run() {
	for _, id := range slices.Sorted(maps.Keys(j.made)) {
		j.delivery(j.made[id], j.byDelivery[id])
	}
	for _, id := range slices.Sorted(maps.Keys(j.byDelivery)) {
		if _, ok := j.made[id]; !ok {
			j.differ(id, "%d attempts of a delivery that nobody made", len(j.byDelivery[id]))
		}
	}
	j.unrecorded()
	j.told()
	j.sunk("delivery_attempts", j.attemptLog, j.attemptTable)
	j.sunk("events", j.eventLog, j.eventTable)
	j.eventsAre()
	j.tablesAre()
	j.ledgerIs()
}

// delivery judges one: its attempts, and that it ended as these say.
func (j *judge) delivery(m made, rows []*webhooksv1.AttemptRow) {
	j.deliveries++
	newest := j.newest[m.id]
	if newest == nil {
		j.differ(m.id, "no row on %s", schemas.DeliveryRows)
		return
	}
	j.enter(m, newest)
	for i, r := range rows {
		if int(r.Number) != i+1 {
			j.differ(m.id, "row %d of %d is of attempt %d", i+1, len(rows), r.Number)
			return
		}
		if i > 0 && r.StartedUnixMs < due(rows[i-1]) {
			j.differ(m.id, "attempt %d began %d ms before it was due", r.Number, due(rows[i-1])-r.StartedUnixMs)
		}
		j.attempt(m, r, j.requestsOf(m.id, i+1))
	}
	status, reason := end(m, rows, newest)
	if newest.Status != status || newest.Reason != reason {
		j.differ(m.id, "of a %s endpoint, is %q %q after %d attempts, expected %q %q", m.kind, newest.Status, newest.Reason, len(rows), status, reason)
	}
	if int(newest.AttemptCount) != len(rows) {
		j.differ(m.id, "its row counts %d attempts, of which there are %d rows", newest.AttemptCount, len(rows))
	}
	if newest.NextAttemptUnixMs != 0 && !m.unmatched || (newest.EndedUnixMs != 0) == m.unmatched {
		j.differ(m.id, "%s: next attempt at %d, ended at %d", newest.Status, newest.NextAttemptUnixMs, newest.EndedUnixMs)
	}
	if reason == "gone" {
		j.gone[m.endpoint]++
	}
}

// due is the earliest that the attempt after one may begin, in Unix milliseconds.
func due(r *webhooksv1.AttemptRow) int64 {
	ended, due := r.StartedUnixMs+int64(r.DurationMs), r.NextAttemptUnixMs
	if int(r.Number) <= len(delays) {
		due = max(due, ended+delays[r.Number-1].Milliseconds())
	}
	if r.StatusCode == http.StatusTooManyRequests {
		due = max(due, ended+retryAfter.Milliseconds())
	}
	return due
}

// enter counts a delivery, also into its organization's ledger.
func (j *judge) enter(m made, newest *webhooksv1.DeliveryRow) {
	j.ended[strings.TrimSpace(newest.Status+" "+newest.Reason)]++
	if m.replay != "" {
		return
	}
	l := j.ledgers[m.org]
	l.accepted++
	switch newest.Status {
	case schemas.DeliveryDelivered:
		l.delivered++
	case schemas.DeliveryDead:
		l.dead++
	case schemas.DeliveryUnmatched:
		l.unmatched++
	default:
		l.waiting++
	}
	j.ledgers[m.org] = l
}

// end is how a delivery must have ended, given its attempts. Whether an endpoint was disabled or deleted in between only
// its owner knows.
func end(m made, rows []*webhooksv1.AttemptRow, is *webhooksv1.DeliveryRow) (status, reason string) {
	if m.unmatched {
		return schemas.DeliveryUnmatched, ""
	}
	closed := is.Reason == "endpoint_deleted" && m.kind == doomed || is.Reason == "endpoint_disabled" && (m.kind == switched || m.kind == gone)
	if len(rows) > 0 {
		switch last := rows[len(rows)-1]; {
		case closed && last.MaybeRepeated && last.ErrorClass == "reset":
			return schemas.DeliveryDead, is.Reason
		case last.Outcome == "success":
			return schemas.DeliveryDelivered, ""
		case last.StatusCode == http.StatusGone:
			return schemas.DeliveryDead, "gone"
		case len(rows) > len(delays):
			return schemas.DeliveryDead, "exhausted"
		}
	}
	if closed {
		return schemas.DeliveryDead, is.Reason
	}
	return schemas.DeliveryDelivered, "after another attempt"
}

// attempt judges a row by what the receiver saw of it.
func (j *judge) attempt(m made, r *webhooksv1.AttemptRow, came []request) {
	j.attempts++
	if r.MaybeRepeated {
		if j.marked++; len(came) == 1 {
			j.needless++
		}
	}
	if r.EndpointId != m.endpoint || r.EventId != m.event || r.OrganizationId != m.org || r.ReplayId != m.replay ||
		(r.Trigger == "replay") != (m.replay != "") {
		j.differ(m.id, "attempt %d is recorded for another delivery: %v", r.Number, r)
	}
	if len(came) == 0 {
		// Nobody can know of one that may have gone out before its endpoint was closed.
		closed := r.MaybeRepeated && r.ErrorClass == "reset" && r.DeliveryStatus == schemas.DeliveryDead
		if j.unseen++; !closed && !strings.HasPrefix(r.ErrorClass, "timeout_") {
			j.differ(m.id, "attempt %d is recorded as %s %d %s, and no receiver saw it", r.Number, r.Outcome, r.StatusCode, r.ErrorClass)
		}
		return
	}
	if !j.answered(r, came) {
		j.differ(m.id, "attempt %d is recorded as %s %d %s, the receiver says %s", r.Number, r.Outcome, r.StatusCode, r.ErrorClass, show(came))
	}
	j.repeated(m, r, came)
}

// answered reports that the row says what one of the requests was answered. One that was sent again may have been answered
// differently before.
func (j *judge) answered(r *webhooksv1.AttemptRow, came []request) bool {
	if (r.Outcome == "success") != (r.StatusCode == http.StatusOK) {
		return false
	}
	for _, req := range came {
		switch {
		case r.StatusCode != 0 && int(r.StatusCode) == req.answer.status(),
			strings.HasPrefix(r.ErrorClass, "timeout_") && req.answer == hang,
			r.ErrorClass == "reset" && (req.answer == cut || r.MaybeRepeated && r.DeliveryStatus == schemas.DeliveryDead):
			return true
		}
	}
	if strings.HasPrefix(r.ErrorClass, "timeout_") {
		j.starved++ // a machine with more to do than it can
		return true
	}
	return false
}

// repeated judges that what came more than once is marked, and that there is a reason for each time.
func (j *judge) repeated(m made, r *webhooksv1.AttemptRow, came []request) {
	if len(came) > 1 && !r.MaybeRepeated {
		j.differ(m.id, "attempt %d came %d times and is not marked: %s", r.Number, len(came), show(came))
	}
	for i := 1; i < len(came); i++ {
		before, again := came[i-1], came[i]
		if before.answer == cut && again.arrived.Sub(before.arrived) < timeoutMS*time.Millisecond+heardWithin {
			j.stale++
			continue
		}
		strike := slices.IndexFunc(j.strikes, func(s fire.Strike) bool { return j.struck(s, m.partition, before, again) })
		if strike < 0 {
			j.differ(m.id, "attempt %d, of a %s endpoint, was sent again without a fault: %s, by %q", r.Number, m.kind, show(came),
				[]string{j.senders.of(before), j.senders.of(again)})
			continue
		}
		j.afterFault++
		j.after[strike]++
		j.most = max(j.most, j.after[strike])
	}
}

const (
	// noticeWithin is how long an owner goes on without knowing that it is none any more; brokersNoticeWithin, how long
	// nothing may be committed after a broker has come back: until what was open is timed out.
	noticeWithin        = 3 * time.Second
	brokersNoticeWithin = 15 * time.Second
)

// struck reports that a request was sent again because of a fault: it was in flight when its sender was struck, or is the
// second one's, who did not know that it had lost the partition.
func (j *judge) struck(s fire.Strike, partition int32, before, again request) bool {
	until := s.To.Add(noticeWithin)
	if s.Instance == "" {
		until = s.To.Add(brokersNoticeWithin)
	}
	from := j.senders.of(before)
	if from == "" {
		from = s.Instance // it may have been
	}
	if (s.Instance == "" || s.Instance == from) && before.arrived.Before(until) && j.inFlight(from, partition, before, s.From) {
		return true
	}
	return s.Instance != "" && s.Instance == j.senders.of(again) && again.arrived.After(s.From) && again.arrived.Before(until)
}

const (
	// heardWithin is how long an answer may take to be heard, and brought into a transaction.
	heardWithin = time.Second
	// commitWithin is how soon after its end an attempt's row is committed, at the latest: nothing is while the group
	// rebalances, for as long as attempts are waited for where partitions move, and until a leader that is frozen has been
	// given up.
	commitWithin = 30 * time.Second
)

// inFlight reports that a request was not done yet at a time, as far as its sender could know: its row was not among those
// of its partition that the sender has committed since.
func (j *judge) inFlight(sender string, partition int32, r request, at time.Time) bool {
	ended := r.ended
	if ended.IsZero() {
		ended = r.arrived.Add(hangTime)
	}
	if ended.Add(commitWithin).Before(at) {
		return false
	}
	commits := j.commits[owner{sender, partition}]
	n, _ := slices.BinarySearchFunc(commits, at, time.Time.Compare)
	return n == 0 || commits[n-1].Before(ended.Add(heardWithin))
}

// owner is an instance that had a partition.
type owner struct {
	instance  string
	partition int32
}

func show(came []request) string {
	var all []string
	for _, r := range came {
		all = append(all, fmt.Sprintf("%s to %s: %d", r.arrived.Format("15:04:05.000"), r.ended.Format("05.000"), r.answer.status()))
	}
	return strings.Join(all, ", ")
}

func (j *judge) requestsOf(delivery string, number int) []request {
	return j.came[attempt{delivery, number}]
}

// unrecorded finds requests that are no row.
func (j *judge) unrecorded() {
	for at, came := range j.came {
		m, ok := j.made[at.delivery]
		switch {
		case !ok:
			j.differ(at.delivery, "a request for a delivery that nobody made")
		case at.number < 1 || at.number > len(j.byDelivery[at.delivery]):
			j.differ(at.delivery, "attempt %d of a %s endpoint came and is no row, of which there are %d; the delivery is %s %s: %s", at.number,
				m.kind, len(j.byDelivery[at.delivery]), j.newest[at.delivery].GetStatus(), j.newest[at.delivery].GetReason(), show(came))
		}
	}
}

// told judges what else follows from the end of deliveries: a dead letter each, an event of each that was exhausted, a
// command for each that its endpoint was gone for.
func (j *judge) told() {
	for id, newest := range j.newest {
		isDead, isExhausted := newest.Status == schemas.DeliveryDead, newest.Reason == "exhausted"
		if (j.dead[id] == 1) != isDead || j.dead[id] > 1 {
			j.differ(id, "is %s and %d times on %s", newest.Status, j.dead[id], schemas.DeliveriesDead)
		}
		if (j.exhausted[id] == 1) != isExhausted || j.exhausted[id] > 1 {
			j.differ(id, "is dead because %q and %d times told of on %s", newest.Reason, j.exhausted[id], schemas.Events)
		}
	}
	if !maps.Equal(j.gone, j.disabled) {
		j.differ("commands", "to disable endpoints: %v, deliveries that were answered 410: %v", j.disabled, j.gone)
	}
}

// sunk compares a plain table with its topic: each record one row, and nothing else.
func (j *judge) sunk(table string, log map[place]row, rows map[place][]row) {
	for at, want := range log {
		got := rows[at]
		if len(got) != 1 {
			j.differ(want.id, "record %v has %d rows in %s: %s", at, len(got), table, want.text)
		} else if got[0].id != want.id || got[0].text != want.text {
			j.differ(want.id, "record %v in %s:\nexpected: %s\nfound: %s %s", at, table, want.text, got[0].id, got[0].text)
		}
	}
	for at, got := range rows {
		if _, ok := log[at]; !ok {
			j.differ(got[0].id, "%d rows in %s of %v, where no record stands", len(got), table, at)
		}
	}
}

// eventsAre compares the rows of events with what was made.
func (j *judge) eventsAre() {
	times := map[string]int{}
	for _, r := range j.eventLog {
		if times[r.id]++; !strings.HasSuffix(r.text, fmt.Sprintf("matched %d", j.events[r.id])) {
			j.differ(r.id, "its row says %s, expected %d", r.text, j.events[r.id])
		}
	}
	for id := range j.events {
		if times[id] != 1 {
			j.differ(id, "%d rows of the event", times[id])
		}
	}
}

// tablesAre compares the table of deliveries with its topic, and asks the question that merchants ask of attempts.
func (j *judge) tablesAre() {
	if j.ids != j.distinct || int(j.ids) != len(j.attemptLog) {
		j.differ("delivery_attempts", "count() is %d, uniqExact(attempt_id) %d; on the log there are %d", j.ids, j.distinct, len(j.attemptLog))
	}
	for id, want := range j.newest {
		got := j.newestTable[id]
		if got == nil || got.Status != want.Status || got.Reason != want.Reason || got.AttemptCount != want.AttemptCount ||
			got.Version != want.Version || got.EndedUnixMs != want.EndedUnixMs || got.ReplayId != want.ReplayId || got.EndpointId != want.EndpointId {
			j.differ(id, "in the table:\nexpected: %v\nfound: %v", want, got)
		}
	}
	if len(j.newestTable) != len(j.newest) || len(j.newest) != len(j.made) {
		j.differ("deliveries", "%d in the table, %d on the log, %d were made", len(j.newestTable), len(j.newest), len(j.made))
	}
}

// ledgerIs compares ClickHouse's ledger with what became of each delivery.
func (j *judge) ledgerIs() {
	for org, want := range j.ledgers {
		if got := j.ledger[org]; got != want || want.waiting != 0 {
			j.differ(org, "the ledger says %+v, expected %+v, and that nothing waits", got, want)
		}
	}
	if len(j.ledger) != len(j.ledgers) {
		j.differ("ledger", "%d organizations, expected %d", len(j.ledger), len(j.ledgers))
	}
}

// measure takes the times of what was made from then on.
func (j *judge) measure(from time.Time) {
	for _, m := range j.made {
		came := j.requestsOf(m.id, 1)
		if m.kind == prompt && m.replay == "" && !m.unmatched && m.at.After(from) && len(came) > 0 {
			j.times = append(j.times, came[0].arrived.Sub(m.at))
		}
	}
}
