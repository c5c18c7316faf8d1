package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/bench/rig"
)

// troubled is the URL of the endpoint in trouble.
func (o options) troubled(m *rig.Merchants) (url string, err error) {
	answers := map[string]string{"hangs": rig.Hangs, "drips": rig.Drips, "closes": rig.Closes, "backlog": rig.Fails, "dns": ""}
	answer, ok := answers[o.trouble]
	switch {
	case !ok:
		return "", fmt.Errorf("unknown case %q", o.trouble)
	case o.trouble == "dns":
		return "http://silent.example:" + m.Port() + "/", nil
	}
	return m.URL(o.endpoints, answer), nil
}

// side is a deliverer that has the endpoint in trouble, or has not.
type side struct {
	name string
	d    *rig.Deliverer
	pick func(i int) rig.Endpoint
	rate float64
	each []latency
}

// latency is how long events took to their merchants, in ms.
type latency struct {
	events         int
	p50, p99, most float64
}

func (l latency) String() string {
	return fmt.Sprintf("%6d events  p50 %7.1f ms  p99 %7.1f ms  the longest %7.1f ms", l.events, l.p50, l.p99, l.most)
}

func compare(ctx context.Context, o options, r *rig.Rig, m *rig.Merchants) error {
	url, err := o.troubled(m)
	if err != nil {
		return err
	}
	others := m.Endpoints("e", rig.OK, o.endpoints-1, o.endpoints-1)
	bad := m.Endpoints("bad", rig.Hangs, 1, 1)
	bad[0].URL = url
	fmt.Printf("%d endpoints, %.0f events a second, a tenth of them for the one of the case %q; %d interleaved runs of %d s\n\n",
		o.endpoints, o.rate, o.trouble, o.runs, o.seconds)
	without := &side{name: "without it", pick: rig.Each(others), rate: o.rate * 0.9}
	with := &side{name: "with it", rate: o.rate, pick: func(i int) rig.Endpoint {
		if i%10 == 9 && o.trouble != "backlog" {
			return bad[0]
		}
		return others[i%len(others)]
	}}
	for _, s := range []*side{without, with} {
		s.d, err = r.Begin(ctx, map[*side]string{without: "without", with: "with"}[s], "", append(others, bad...), func(setup *rig.Setup) {
			setup.SilentDNS = true
		})
		if err != nil {
			return err
		}
		defer s.d.End()
		// Every endpoint is known before it is measured.
		if _, err := s.run(ctx, m, rig.Each(others), 5, o.rate); err != nil {
			return err
		}
	}
	for run := range o.runs {
		for _, s := range []*side{without, with} {
			if s == with && o.trouble == "backlog" {
				if err := fallBehind(ctx, o, m, with.d, bad); err != nil {
					return err
				}
			}
			l, err := s.run(ctx, m, s.pick, o.seconds, s.rate)
			if err != nil {
				return err
			}
			s.each = append(s.each, l)
			fmt.Printf("run %d  %-10s  the others: %s\n", run+1, s.name, l)
		}
	}
	report(without.each, with.each)
	b, err := with.d.Balance(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("with it, the ledger %s\n", b)
	if !b.Closes() {
		return errors.New("the ledger does not close")
	}
	return nil
}

// run feeds for a time, and says how long the events of endpoints that answer took.
func (s *side) run(ctx context.Context, m *rig.Merchants, pick func(int) rig.Endpoint, seconds int, rate float64) (l latency, err error) {
	if err := m.Ask("latency", new(int), new(float64), new(float64), new(float64)); err != nil {
		return l, err
	}
	events, expected := int(float64(seconds)*rate), 0
	counting := func(i int) rig.Endpoint {
		e := pick(i)
		if e.Answers() {
			expected++
		}
		return e
	}
	if err := s.d.Feed(ctx, events, rate, counting); err != nil {
		return l, err
	}
	for noted := 0; noted < expected; {
		if err := m.Ask("noted", &noted); err != nil {
			return l, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return l, ctx.Err()
		}
	}
	err = m.Ask("latency", &l.events, &l.p50, &l.p99, &l.most)
	return l, err
}

// fallBehind has the endpoint fail until so many deliveries wait for it, and recover.
func fallBehind(ctx context.Context, o options, m *rig.Merchants, d *rig.Deliverer, bad []rig.Endpoint) error {
	if err := m.Ask("fail", new(string)); err != nil {
		return err
	}
	if err := d.Feed(ctx, o.behind, 0, rig.Each(bad)); err != nil {
		return err
	}
	if err := d.AwaitHeld(ctx, o.behind); err != nil {
		return err
	}
	return m.Ask("recover", new(string))
}

// report compares the medians with the bar.
func report(without, with []latency) {
	p99 := func(runs []latency) float64 {
		var values []float64
		for _, l := range runs {
			values = append(values, l.p99)
		}
		return measure.Median(values)
	}
	a, b := p99(without), p99(with)
	verdict := "within"
	if b > 1.2*a && b > a+10 {
		verdict = "over"
	}
	fmt.Printf("\nmedians of the others' p99: without it %.1f ms, with it %.1f ms: %.2f times, %+.1f ms: %s the bar of 1.2 times or +10 ms\n",
		a, b, b/a, b-a, verdict)
}
