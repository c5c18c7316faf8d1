package settings

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
)

// Addr is where to listen: "host:port", the host may be left out, port 0 picks a free one.
type Addr string

// Validate implements kong's check.
func (a Addr) Validate() error {
	_, port, err := net.SplitHostPort(string(a))
	if err != nil {
		return fmt.Errorf("%q is not host:port", string(a))
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("the port of %q is not a number from 0 to 65535", string(a))
	}
	return nil
}

// Brokers are the Kafka brokers to ask first, each "host:port".
type Brokers []string

// Validate implements kong's check.
func (b Brokers) Validate() error {
	for _, broker := range b {
		host, port, err := net.SplitHostPort(broker)
		if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || host == "" || portErr != nil || n == 0 {
			return fmt.Errorf("%q is not host:port", broker)
		}
	}
	return nil
}

// BaseURL is "http://host:port" or "https://host", without a path.
type BaseURL string

// Validate implements kong's check.
func (b BaseURL) Validate() error {
	if b == "" {
		return nil
	}
	u, err := url.Parse(string(b))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not a URL like http://host:port", string(b))
	}
	return nil
}

// ClickHouseURL is clickhouse://…/DB or http(s)://…/DB. It may hold a password and is never shown.
type ClickHouseURL string

// Validate implements kong's check.
func (c ClickHouseURL) Validate() error {
	if c == "" {
		return nil
	}
	u, err := url.Parse(string(c))
	if err != nil {
		return errors.New("is not a URL (its text is not shown, it may hold a password)")
	}
	switch u.Scheme {
	case "clickhouse", "http", "https":
	default:
		return fmt.Errorf("scheme %q is none of clickhouse, http, https", u.Scheme)
	}
	if u.Hostname() == "" {
		return errors.New("names no host")
	}
	if strings.Trim(u.Path, "/") == "" {
		return errors.New("names no database: add /webhooks")
	}
	return nil
}

// String hides the password.
func (c ClickHouseURL) String() string {
	u, err := url.Parse(string(c))
	if err != nil {
		return "***"
	}
	return u.Redacted()
}

// AlertmanagerURLs are URLs of Alertmanagers, separated by commas. They may hold passwords and are never shown.
type AlertmanagerURLs string

// Validate implements kong's check.
func (a AlertmanagerURLs) Validate() error {
	for i, item := range a.List() {
		u, err := url.Parse(item)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("URL %d is not one like http://host:9093 (its text is not shown, it may hold a password)", i+1)
		}
		if strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/api/v2/alerts") {
			return fmt.Errorf("URL %d: leave out /api/v2/alerts, it is added", i+1)
		}
	}
	return nil
}

// List splits them; none are none.
func (a AlertmanagerURLs) List() []string {
	if a == "" {
		return nil
	}
	return splitList(string(a))
}

func (a AlertmanagerURLs) String() string { return "***" }

// TopicPrefix stands before every topic's name.
type TopicPrefix string

// maxTopicPrefix leaves room for the longest of our topics' and groups' names in the 249 characters of a topic's.
const maxTopicPrefix = 150

// Validate implements kong's check: Kafka takes ASCII letters, digits, '.', '_' and '-' in names of topics.
func (p TopicPrefix) Validate() error {
	for _, c := range string(p) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c)) {
			return fmt.Errorf("%q has %q in it; names of topics are made of letters, digits, '.', '_' and '-'", string(p), c)
		}
	}
	if len(p) > maxTopicPrefix {
		return fmt.Errorf("has %d characters; at most %d leave room for the topics' names", len(p), maxTopicPrefix)
	}
	return nil
}

// Secret is one secret text that travels in a header (a bearer token, RFC 6750, section 2.1). It prints as stars.
type Secret string

// Validate implements kong's check.
func (s Secret) Validate() error {
	for _, c := range string(s) {
		if c <= ' ' || c > '~' {
			return errors.New("has a space in it, or what is not printable ASCII: it could not be sent")
		}
	}
	return nil
}

func (s Secret) String() string { return "***" }

// Secrets are several secret texts, separated by commas. They print as stars.
type Secrets string

// Validate implements kong's check.
func (s Secrets) Validate() error {
	if s == "" {
		return nil
	}
	for i, item := range s.List() {
		if item == "" {
			return fmt.Errorf("secret %d of the list is empty", i+1)
		}
	}
	return nil
}

// List splits them.
func (s Secrets) List() []string { return splitList(string(s)) }

func splitList(text string) []string {
	items := strings.Split(text, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

func (s Secrets) String() string { return "***" }

// SecretsKey is the text of a keyring. It prints as stars.
type SecretsKey string

// Validate implements kong's check.
func (s SecretsKey) Validate() error {
	if s == "" {
		return nil
	}
	_, err := seal.NewKeyring(string(s))
	return err
}

func (s SecretsKey) String() string { return "***" }

// Fraction is from 0 to 1.
type Fraction float64

// Validate implements kong's check.
func (f Fraction) Validate() error {
	if !(f >= 0 && f <= 1) {
		return fmt.Errorf("%v is not from 0 to 1", float64(f))
	}
	return nil
}

// Rate is in requests a second; 0 is no limit.
type Rate float64

// Validate implements kong's check.
func (r Rate) Validate() error {
	if !(r >= 0) || math.IsInf(float64(r), 0) {
		return fmt.Errorf("%v is not 0 or more requests a second", float64(r))
	}
	return nil
}

// Positive is a duration above 0.
type Positive time.Duration

// UnmarshalText reads a Go duration.
func (p *Positive) UnmarshalText(text []byte) error {
	d, err := parsePositive(string(text))
	*p = Positive(d)
	return err
}

// Bound is a duration; 0 is no bound.
type Bound time.Duration

// UnmarshalText reads a Go duration.
func (b *Bound) UnmarshalText(text []byte) error {
	d, err := parseDuration(string(text))
	if err == nil && d < 0 {
		err = fmt.Errorf("%q is below 0", text)
	}
	*b = Bound(d)
	return err
}

// Moment is a time (RFC 3339), or how long ago it was.
type Moment string

// Validate implements kong's check.
func (m Moment) Validate() error {
	_, err := m.parse(time.Time{})
	return err
}

// At is the moment, seen from now; zero where there is none.
func (m Moment) At(now time.Time) time.Time {
	at, _ := m.parse(now) // it was validated
	return at
}

func (m Moment) parse(now time.Time) (time.Time, error) {
	if m == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, string(m)); err == nil {
		return at, nil
	}
	ago, err := parsePositive(string(m))
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time like 2026-01-31T12:00:00Z nor a duration like 24h, which is that long ago", string(m))
	}
	return now.Add(-ago), nil
}

// Schedule is a list of delays, separated by commas.
type Schedule []time.Duration

// maxDelays bounds a schedule. The longest sensible one, a day apart for a quarter, has fewer.
const maxDelays = 100

// UnmarshalText reads the list.
func (s *Schedule) UnmarshalText(text []byte) error {
	*s = nil
	for item := range strings.SplitSeq(string(text), ",") {
		d, err := parsePositive(strings.TrimSpace(item))
		if err != nil {
			return err
		}
		*s = append(*s, d)
	}
	if len(*s) > maxDelays {
		return fmt.Errorf("%d delays are more than %d", len(*s), maxDelays)
	}
	return nil
}

// Retention is a duration with exceptions by source: "192h; stripe=768h".
type Retention struct {
	Default  time.Duration
	BySource map[string]time.Duration
}

// UnmarshalText reads the list; items are separated by semicolons or commas. Exactly one has no source.
func (r *Retention) UnmarshalText(text []byte) error {
	*r = Retention{BySource: map[string]time.Duration{}}
	for item := range strings.FieldsFuncSeq(string(text), func(c rune) bool { return c == ';' || c == ',' }) {
		source, value, named := strings.Cut(strings.TrimSpace(item), "=")
		if !named {
			source, value = "", source
		}
		d, err := parsePositive(value)
		if err != nil {
			return err
		}
		if d > schemas.MaxDedupeRetention {
			return fmt.Errorf("%q is more than %dh, the longest that Kafka keeps what was seen", value, int(schemas.MaxDedupeRetention.Hours()))
		}
		if _, twice := r.BySource[source]; twice || !named && r.Default != 0 {
			return fmt.Errorf("%q is given twice", strings.TrimSpace(item))
		}
		if !named {
			r.Default = d
			continue
		}
		if source == "" {
			return fmt.Errorf("%q names no source", item)
		}
		r.BySource[source] = d
	}
	if r.Default == 0 {
		return errors.New("one item must be a plain duration, for all other sources")
	}
	return nil
}

// Of is the retention of a source.
func (r Retention) Of(source string) time.Duration {
	if d, ok := r.BySource[source]; ok {
		return d
	}
	return r.Default
}

func parsePositive(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && d <= 0 {
		return 0, fmt.Errorf("%q is not above 0", s)
	}
	return d, err
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration like 500ms, 15s or 2h", s)
	}
	return d, nil
}
