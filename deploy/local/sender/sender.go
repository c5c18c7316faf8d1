// Package sender is `webhooks send`: it signs events as a platform does and posts them to a running system, for people
// who try it and for tests. It takes whole events, bare objects, and samples that it brings along.
package sender

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/betterdata/webhooks/deploy/local"
)

// Config says what is sent and where to.
type Config struct {
	// Files are paths of JSON files, or names of samples.
	Files []string
	// URL of the webhook, and the secret to sign with; empty: those of the system running in DataDir.
	URL, Secret string
	DataDir     string
	// Org replaces metadata.organizationId of each object, when it is set.
	Org string
	// NewIDs gives each event a new id and the present time.
	NewIDs bool
	// Type of bare objects; empty: the file's name says it.
	Type string
}

// timeout bounds one request.
const timeout = 30 * time.Second

// maxAnswer is how much of an answer is printed.
const maxAnswer = 4 << 10

// Stripe sends the files one after the other and prints a line for each. It returns an error when one could not be sent
// or was not accepted; the others are sent nevertheless.
func Stripe(ctx context.Context, cfg Config, out io.Writer) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	refused := 0
	for _, file := range cfg.Files {
		e, err := read(file, cfg)
		if err != nil {
			return err
		}
		status, answer, err := post(ctx, cfg, e.body)
		if err != nil {
			return fmt.Errorf("send %s to %s: %w", file, cfg.URL, err)
		}
		if status != http.StatusOK {
			refused++
		}
		fmt.Fprintf(out, "%s  %s  →  %d %s\n", e.eventType, e.id, status, answer)
	}
	if refused > 0 {
		return fmt.Errorf("%d of %d events were not accepted", refused, len(cfg.Files))
	}
	return nil
}

// complete finds the running system.
func (c *Config) complete() error {
	if c.URL == "" {
		at, err := local.ReadAddresses(c.DataDir)
		if err != nil {
			return fmt.Errorf("nothing runs with DATA_DIR %s (%w): start `webhooks run` or say --url", c.DataDir, err)
		}
		c.URL = "http://" + at.HTTP + "/webhooks/stripe"
	}
	if c.Secret == "" {
		values, err := local.ReadDevEnv(c.DataDir)
		if err != nil {
			return err
		}
		c.Secret = values["STRIPE_WEBHOOK_SECRET"]
	}
	// While secrets are rotated there are several; any will do.
	c.Secret, _, _ = strings.Cut(c.Secret, ",")
	if c.Secret == "" {
		return fmt.Errorf("no signing secret: say --secret, or --data-dir of a running system")
	}
	return nil
}

// post signs body for now, as Stripe does at each attempt.
func post(ctx context.Context, cfg Config, body []byte) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, cfg.URL, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	now := time.Now()
	signature := hex.EncodeToString(webhook.ComputeSignature(now, body, cfg.Secret))
	req.Header.Set("Stripe-Signature", fmt.Sprintf("t=%d,v1=%s", now.Unix(), signature))
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	return res.StatusCode, strings.TrimSpace(string(text)), err
}
