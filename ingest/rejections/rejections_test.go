package rejections_test

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/ingest/rejections"
	"github.com/betterdata/webhooks/ingest/source"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// sink takes rows and fails as many as told.
type sink struct {
	mu   sync.Mutex
	rows []*webhooksv1.RejectionRow
	held []func()
	// fail and hold say what happens to the next rows.
	fail int
	hold bool
}

func (s *sink) send(row []byte, done func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		done(errors.New("away"))
		return
	}
	var r webhooksv1.RejectionRow
	if err := proto.Unmarshal(row, &r); err != nil {
		panic(err)
	}
	finish := func() {
		s.rows = append(s.rows, &r)
		done(nil)
	}
	if s.hold {
		s.held = append(s.held, finish)
		return
	}
	finish()
}

func (s *sink) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, finish := range s.held {
		finish()
	}
	s.held, s.hold = nil, false
}

func (s *sink) taken() []*webhooksv1.RejectionRow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rows)
}

func (s *sink) weights() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := map[string]uint64{}
	for _, r := range s.rows {
		sum[r.Source+" "+r.Reason] += uint64(r.Weight)
	}
	return sum
}

func newRecorder(s *sink, perSecond, queue int) *rejections.Recorder {
	return rejections.New(rejections.Config{Sources: []string{"stripe"}, PerSecond: perSecond, Queue: queue, Worker: "w1"},
		s.send, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

func request() rejections.Request {
	return rejections.Request{RemoteIP: netip.MustParseAddr("192.0.2.7"), UserAgent: []byte("curl/8"), ContentLength: 42}
}

func TestARow(t *testing.T) {
	s := &sink{}
	at := time.UnixMilli(1767323045678)
	newRecorder(s, 0, 0).Refused("stripe", source.BodyTooLarge, request(), at)
	ip := netip.MustParseAddr("::ffff:192.0.2.7").As16()
	require.Len(t, s.rows, 1)
	require.True(t, proto.Equal(&webhooksv1.RejectionRow{
		RejectedUnixMs: 1767323045678, Source: "stripe", Reason: "body_too_large", Status: 413, RemoteIp: ip[:],
		UserAgent: "curl/8", ContentLength: 42, Weight: 1, Worker: "w1",
	}, s.rows[0]), s.rows[0])
}

func TestASourceThatDoesNotExistIsUnknown(t *testing.T) {
	s := &sink{}
	newRecorder(s, 0, 0).Refused("'; DROP TABLE", source.Unknown, request(), time.Now())
	require.Equal(t, "unknown", s.rows[0].Source)
}

func TestUserAgentsAreCutAndUTF8(t *testing.T) {
	for name, ua := range map[string]string{
		"long": strings.Repeat("é", 500), "not UTF-8": "a\xff\xfeb", "long and not UTF-8": strings.Repeat("\xff ", 500),
		"cut within a character": strings.Repeat("a", 255) + "é",
	} {
		t.Run(name, func(t *testing.T) {
			s, req := &sink{}, request()
			req.UserAgent = []byte(ua)
			newRecorder(s, 0, 0).Refused("stripe", source.Malformed, req, time.Now())
			require.True(t, utf8.ValidString(s.rows[0].UserAgent))
			require.LessOrEqual(t, len(s.rows[0].UserAgent), 256)
		})
	}
}

func TestUndeclaredLengthIsZero(t *testing.T) {
	s, req := &sink{}, request()
	req.ContentLength = -1
	newRecorder(s, 0, 0).Refused("stripe", source.Malformed, req, time.Now())
	require.Zero(t, s.rows[0].ContentLength)
}

func TestAnAttackIsSampledAndNothingIsLostFromTheSum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		r := newRecorder(s, 5, 100)
		go r.Run(t.Context())
		for range 100_000 {
			r.Refused("stripe", source.SignatureInvalid, request(), time.Now())
		}
		synctest.Wait()
		require.Len(t, s.taken(), 5, "rows of one second")
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 100_000, s.weights()["stripe signature_invalid"], "a second later, with no further refusal")
		require.Len(t, s.taken(), 6)
		require.Zero(t, r.Outstanding())
	})
}

func TestKafkaAwayAndAFullQueueCostNoWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{hold: true}
		r := newRecorder(s, 1000, 3)
		for range 50 {
			r.Refused("stripe", source.SignatureMissing, request(), time.Now())
		}
		s.release()
		synctest.Wait()
		s.fail = 7
		r.Drain(t.Context())
		require.EqualValues(t, 50, s.weights()["stripe signature_missing"])
		require.Zero(t, r.Outstanding())
	})
}

// Whatever happens on the way, the weights add up to the refusals, by class.
func TestWeightsAddUp(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := &sink{}
		r := newRecorder(s, rapid.IntRange(1, 4).Draw(rt, "per second"), rapid.IntRange(1, 5).Draw(rt, "queue"))
		want := map[string]uint64{}
		now := time.Unix(1_767_323_045, 0)
		for range rapid.IntRange(0, 60).Draw(rt, "steps") {
			switch rapid.IntRange(0, 5).Draw(rt, "step") {
			case 0:
				now = now.Add(time.Second)
			case 1:
				s.mu.Lock()
				s.hold = !s.hold
				s.mu.Unlock()
			case 2:
				s.release()
			case 3:
				s.mu.Lock()
				s.fail = rapid.IntRange(0, 3).Draw(rt, "failures")
				s.mu.Unlock()
			default:
				reason := rapid.SampledFrom([]source.Reason{source.Malformed, source.SignatureInvalid}).Draw(rt, "reason")
				for range rapid.IntRange(1, 9).Draw(rt, "refusals") {
					r.Refused("stripe", reason, request(), now)
					want["stripe "+string(reason)]++
				}
			}
		}
		s.release()
		r.Drain(t.Context())
		require.Equal(rt, want, s.weights())
	})
}
