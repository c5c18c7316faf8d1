package receiver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/betterdata/webhooks/deploy/local"
)

const (
	// startPatience is how long a system may take to start before there is none; pollInterval how often it is asked.
	startPatience = 5 * time.Second
	pollInterval  = 200 * time.Millisecond
)

// management is the API of the running system.
type management struct {
	endpoints string
	key       string
	types     []string
}

// findManagement waits a while for a system that is still starting.
func findManagement(ctx context.Context, cfg Config, out io.Writer) (*management, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	told := false
	for {
		m, err := newManagement(cfg)
		if err == nil {
			if err = m.call(ctx, http.MethodGet, "", nil, nil); err == nil || !starting(err) {
				return m, err
			}
		}
		if !told {
			told = true
			fmt.Fprintln(out, "Waiting for the system to be ready…")
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pollInterval):
		}
	}
}

// starting reports that the answer may be another one soon.
func starting(err error) bool {
	answered, ok := errors.AsType[*answerError](err)
	return !ok || answered.status == http.StatusServiceUnavailable
}

// answerError is an answer that is no success.
type answerError struct {
	status int
	text   string
}

func (e *answerError) Error() string { return fmt.Sprintf("the API answered %d: %s", e.status, e.text) }

// newManagement finds the running system.
func newManagement(cfg Config) (*management, error) {
	if cfg.API == "" {
		at, err := local.ReadAddresses(cfg.DataDir)
		if err != nil {
			return nil, fmt.Errorf("nothing runs with DATA_DIR %s (%w): start `webhooks run`, or say --api or --secret", cfg.DataDir, err)
		}
		cfg.API = "http://" + at.HTTP
	}
	if cfg.Key == "" {
		values, err := local.ReadDevEnv(cfg.DataDir)
		if err != nil {
			return nil, err
		}
		if cfg.Key = values["ADMIN_API_KEY"]; cfg.Key == "" {
			return nil, fmt.Errorf("no key of the management API: say --admin-api-key, or --data-dir of the running system")
		}
	}
	return &management{endpoints: cfg.API + "/v1/orgs/" + url.PathEscape(cfg.Org) + "/endpoints", key: cfg.Key, types: cfg.Types}, nil
}

// createEndpoint returns the id and the secret, which is shown this once only.
func (m *management) createEndpoint(ctx context.Context, url string) (id, secret string, err error) {
	var created struct{ ID, Secret string }
	request := map[string]any{"url": url, "eventTypes": m.types, "description": "webhooks listen"}
	if err := m.call(ctx, http.MethodPost, "", request, &created); err != nil {
		return "", "", fmt.Errorf("create an endpoint: %w", err)
	}
	return created.ID, created.Secret, nil
}

func (m *management) deleteEndpoint(ctx context.Context, id string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := m.call(ctx, http.MethodDelete, "/"+id, nil, nil); err != nil {
		return fmt.Errorf("endpoint %s is left behind: %w", id, err)
	}
	fmt.Fprintf(out, "\nEndpoint %s removed.\n", id)
	return nil
}

func (m *management) call(ctx context.Context, method, path string, request, answer any) error {
	var body bytes.Buffer
	if request != nil {
		if err := json.NewEncoder(&body).Encode(request); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, m.endpoints+path, &body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+m.key)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 || res.StatusCode == http.StatusAccepted {
		return &answerError{res.StatusCode, string(bytes.TrimSpace(text))}
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}
