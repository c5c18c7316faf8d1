package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
)

const (
	// accounts is how many customers events are about, each with an organization of its own.
	accounts = 10_000
	// eventBytes is the size of an event's body.
	eventBytes = 3000
	// prepared is how many different signed requests a connection sends in turn.
	prepared = 64
)

func customer(i int) string { return fmt.Sprintf("cus_%014d", i) }

// event is a subscription's event as Stripe prints it, two spaces a level, filled up with metadata to its size.
func event(i int) []byte {
	head := fmt.Sprintf(envelope, i, i, customer(i%accounts))
	tail := fmt.Sprintf("\n        \"organizationId\": \"org_%d\"\n      }\n    }\n  }\n}\n", i%accounts)
	const note = "\n        \"note_%02d\": \"as long as notes of merchants usually are\","
	body := []byte(head)
	for n := 0; len(body)+len(note)+len(tail) < eventBytes; n++ {
		body = fmt.Appendf(body, note, n)
	}
	body = append(body, bytes.Repeat([]byte(" "), eventBytes-len(body)-len(tail))...)
	return append(body, tail...)
}

// envelope lacks the event's, the subscription's and the customer's id, and ends within metadata.
const envelope = `{
  "id": "evt_%020d",
  "object": "event",
  "api_version": "2025-03-31.basil",
  "created": 1767323045,
  "type": "customer.subscription.updated",
  "livemode": true,
  "pending_webhooks": 1,
  "request": {
    "id": null,
    "idempotency_key": null
  },
  "data": {
    "object": {
      "id": "sub_%014d",
      "object": "subscription",
      "cancel_at": null,
      "cancel_at_period_end": false,
      "collection_method": "charge_automatically",
      "currency": "usd",
      "customer": "%s",
      "ended_at": null,
      "items": {
        "object": "list",
        "data": [
          {
            "id": "si_00000000000001",
            "object": "subscription_item",
            "quantity": 1,
            "current_period_start": 1767323045,
            "current_period_end": 1770001445,
            "price": {
              "id": "price_000000000000000000000001",
              "object": "price",
              "lookup_key": "scm_pro",
              "product": "prod_00000000000001",
              "recurring": {
                "interval": "month",
                "interval_count": 1,
                "usage_type": "licensed"
              }
            }
          }
        ],
        "has_more": false
      },
      "status": "active",
      "metadata": {`

func requests(connection int) [][]byte {
	var all [][]byte
	at := time.Now()
	for i := range prepared {
		body := event(connection*prepared + i)
		all = append(all, fmt.Appendf(nil, "POST /webhooks/stripe HTTP/1.1\r\nHost: bench\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"+
			"Content-Type: application/json; charset=utf-8\r\nCache-Control: no-cache\r\nAccept: */*; q=0.5, application/json\r\n"+
			"Stripe-Signature: t=%d,v1=%x\r\nContent-Length: %d\r\n\r\n%s", at.Unix(), webhook.ComputeSignature(at, body, secret), len(body), body))
	}
	return all
}

// runLoad prepares its requests, then keeps every connection busy for the given time when told to go.
func runLoad(o options) error {
	clients := make([]*client, o.connections)
	for i := range clients {
		clients[i] = &client{requests: requests(i)}
	}
	// Connections are opened last: the server closes one that stays silent.
	for _, c := range clients {
		var err error
		if c.conn, err = net.Dial("tcp", o.target); err != nil {
			return err
		}
		defer c.conn.Close()
		c.in = bufio.NewReader(c.conn)
	}
	fmt.Println("ready")
	return obey(map[string]func() (string, error){"go": func() (string, error) {
		start := time.Now()
		until := start.Add(time.Duration(o.seconds * float64(time.Second)))
		var running sync.WaitGroup
		for _, c := range clients {
			running.Go(func() { c.err = c.run(until) })
		}
		running.Wait()
		return report(clients, time.Since(start))
	}})
}

func report(clients []*client, took time.Duration) (string, error) {
	r := result{Seconds: took.Seconds()}
	var all []time.Duration
	var errs []error
	for _, c := range clients {
		r.Failed += c.failed
		all, errs = append(all, c.took...), append(errs, c.err)
	}
	slices.Sort(all)
	r.Answered = len(all)
	if r.Answered > 0 {
		r.P50 = all[len(all)/2].Seconds() * 1000
		r.P999 = all[len(all)*999/1000].Seconds() * 1000
	}
	line, err := json.Marshal(r)
	return string(line), errors.Join(append(errs, err)...)
}

// client is one connection with one request open at a time.
type client struct {
	conn     net.Conn
	in       *bufio.Reader
	requests [][]byte
	took     []time.Duration
	failed   int
	err      error
}

func (c *client) run(until time.Time) error {
	for i := 0; ; i++ {
		start := time.Now()
		if start.After(until) {
			return nil
		}
		if _, err := c.conn.Write(c.requests[i%len(c.requests)]); err != nil {
			return err
		}
		ok, err := c.answered()
		switch {
		case err != nil:
			return err
		case ok:
			c.took = append(c.took, time.Since(start))
		default:
			c.failed++
		}
	}
}

// answered reads one answer; it parses no more of it than it must.
func (c *client) answered() (ok bool, err error) {
	length := 0
	for first := true; ; first = false {
		line, err := c.in.ReadSlice('\n')
		switch {
		case err != nil:
			return false, err
		case first:
			ok = strings.HasPrefix(string(line), "HTTP/1.1 200")
		case len(line) <= 2:
			_, err := io.CopyN(io.Discard, c.in, int64(length))
			return ok, err
		}
		if value, is := strings.CutPrefix(string(line), "Content-Length: "); is {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return false, err
			}
		}
	}
}
