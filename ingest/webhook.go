package ingest

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"

	"github.com/betterdata/webhooks/ingest/produce"
	"github.com/betterdata/webhooks/ingest/rejections"
	"github.com/betterdata/webhooks/ingest/source"
	"github.com/betterdata/webhooks/internal/httpapi"
)

// webhooks takes what platforms send: POST /webhooks/{source}.
type webhooks struct {
	sources    map[string]source.Source
	maxBody    int
	producer   *produce.Producer
	routes     *routes
	rejections *rejections.Recorder
	metrics    *metrics
	scratch    sync.Pool
	log        *slog.Logger
	// unstored says so in the log, once a second at most: the metric counts.
	unstored rate.Sometimes
	// open is false until the edge can do its work; before that everything is answered 503.
	open func() bool
}

// serve answers one request in the order of CONTRACT §2.
func (w *webhooks) serve(ctx *fasthttp.RequestCtx, name []byte) {
	start := time.Now()
	// No answer leaves without the id, and an answer needs it before anything can fail.
	httpapi.RequestID(ctx)
	src := w.sources[string(name)]
	label := rejections.Unknown
	if src != nil {
		label = src.Name()
	}
	id, refusal := w.take(ctx, src, start)
	if refusal != nil {
		w.refuse(ctx, label, refusal, start)
	} else {
		answerID(ctx, id)
	}
	w.metrics.answered(label, ctx.Response.StatusCode())
	w.metrics.duration.Observe(time.Since(start).Seconds())
}

// take makes the request's event durable and returns our id of it.
func (w *webhooks) take(ctx *fasthttp.RequestCtx, src source.Source, now time.Time) (id string, refusal *source.Refusal) {
	if refusal := w.admit(ctx, src); refusal != nil {
		return "", refusal
	}
	s := w.scratch.Get().(*scratch)
	body, reserved, err := readBody(ctx, w.maxBody, w.producer.Budget, s.body[:])
	if err != nil {
		w.producer.Budget.Give(reserved)
		w.scratch.Put(s)
		leave(ctx, err)
		return "", w.unread(err)
	}
	event, refusal := verified(src, &ctx.Request.Header, body, now)
	if refusal != nil {
		w.producer.Budget.Give(reserved)
		w.scratch.Put(s)
		return "", refusal
	}
	id, record := s.inboundRecord(src.Name(), &event, w.routes, body, now)
	record.Reserved = reserved
	if err := w.producer.Send(record); err != nil {
		// The client may hold the record still: its memory is left to the garbage collector.
		w.unstored.Do(func() {
			w.log.Warn("event not stored, answered 503", "event_id", id, "topic", record.Topic, "error", err)
		})
		return "", &source.Refusal{Reason: source.Unavailable, Detail: "The event could not be stored in time. Send it again."}
	}
	w.scratch.Put(s)
	if event.Ignored != "" {
		w.metrics.ignored[src.Name()].Inc()
	}
	return id, nil
}

// admit judges what the headers tell.
func (w *webhooks) admit(ctx *fasthttp.RequestCtx, src source.Source) *source.Refusal {
	switch {
	case src == nil:
		return &source.Refusal{Reason: source.Unknown, Detail: "There is no such source here, or it has no secret."}
	case !ctx.IsPost():
		return &source.Refusal{Reason: source.Method, Detail: "Webhooks are sent by POST."}
	case ctx.Request.Header.ContentLength() > w.maxBody:
		return w.unread(errTooLarge)
	case !plain(ctx.Request.Header.PeekAll(fasthttp.HeaderContentEncoding)):
		return &source.Refusal{Reason: source.EncodingUnsupported, Detail: "Bodies are taken without Content-Encoding only."}
	case !w.open():
		return &source.Refusal{Reason: source.Unavailable, Detail: "The service is starting. Send it again."}
	}
	return nil
}

// plain reports that the body is as it was signed.
func plain(encodings [][]byte) bool {
	for _, e := range encodings {
		if len(e) > 0 && !bytes.EqualFold(e, []byte("identity")) {
			return false
		}
	}
	return true
}

func (w *webhooks) unread(err error) *source.Refusal {
	switch {
	case errors.Is(err, errTooLarge):
		return &source.Refusal{Reason: source.BodyTooLarge, Detail: "The body is larger than " + strconv.Itoa(w.maxBody) + " bytes."}
	case errors.Is(err, errNoBudget):
		return &source.Refusal{Reason: source.Unavailable, Detail: "Too much is being received at the moment. Send it again."}
	case errors.Is(err, errChunks):
		return &source.Refusal{Reason: source.Malformed, Detail: "The body's chunks cannot be read."}
	}
	return &source.Refusal{Reason: source.RequestTimeout, Detail: "The body did not arrive whole and in time."}
}

func verified(src source.Source, header *fasthttp.RequestHeader, body []byte, now time.Time) (source.Event, *source.Refusal) {
	if refusal := src.Verify(header, body, now); refusal != nil {
		return source.Event{}, refusal
	}
	return src.Read(header, body)
}

// refuse answers with a problem, after what the client still sends was read, and records the refusal.
func (w *webhooks) refuse(ctx *fasthttp.RequestCtx, label string, refusal *source.Refusal, now time.Time) {
	status := refusal.Reason.Status()
	w.refused(label, refusal.Reason, rejections.Request{
		RemoteIP: remoteIP(ctx), UserAgent: ctx.UserAgent(), ContentLength: ctx.Request.Header.ContentLength(),
	}, now)
	drain(ctx)
	problem := httpapi.NewProblem(status, string(refusal.Reason), "%s", refusal.Detail)
	switch refusal.Reason {
	case source.Method:
		ctx.Response.Header.Set(fasthttp.HeaderAllow, fasthttp.MethodPost)
	case source.Unavailable:
		problem.RetryAfter = retryAfter
	}
	httpapi.WriteProblem(ctx, problem)
}

// refused makes a refusal visible.
func (w *webhooks) refused(label string, reason source.Reason, req rejections.Request, now time.Time) {
	w.metrics.rejected[label][reason].Inc()
	w.rejections.Refused(label, reason, req, now)
}

const retryAfter = time.Second

func remoteIP(ctx *fasthttp.RequestCtx) netip.Addr {
	ip, ok := netip.AddrFromSlice(ctx.RemoteIP())
	if !ok {
		return netip.IPv6Unspecified()
	}
	return ip
}

// answerID answers 200 {"id":"evt_…"}; ids need no escaping.
func answerID(ctx *fasthttp.RequestCtx, id string) {
	ctx.SetStatusCode(http.StatusOK)
	ctx.Response.Header.SetContentType("application/json")
	ctx.Response.AppendBodyString(`{"id":"`)
	ctx.Response.AppendBodyString(id)
	ctx.Response.AppendBodyString(`"}`)
}
