package settings

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// key is base64 of 32 bytes.
const key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// environment sets what a processor needs, and changes it; a value of "-" unsets.
func environment(t *testing.T, changes map[string]string) {
	t.Helper()
	env := map[string]string{
		"ADMIN_API_KEY": "k", "SECRETS_KEY": key, "STRIPE_WEBHOOK_SECRET": "whsec_a,whsec_b",
		"KAFKA_BROKERS": "a:1,b:2", "CLICKHOUSE_URL": "clickhouse://h/db",
	}
	for name, value := range changes {
		env[name] = value
	}
	for name, value := range env {
		if value != "-" {
			t.Setenv(name, value)
		}
	}
}

func TestDefaults(t *testing.T) {
	cli, command, err := Parse([]string{"run"}, nil)
	require.NoError(t, err)
	require.Equal(t, "run", command)
	r := cli.Run
	require.Equal(t, Addr("127.0.0.1:8080"), r.HTTPAddr)
	require.Equal(t, Addr("127.0.0.1:8081"), r.AdminAddr)
	require.Equal(t, 1<<20, r.MaxBodyBytes)
	require.Equal(t, Positive(30*time.Second), r.ShutdownTimeout)
	require.Equal(t, Positive(90*24*time.Hour), r.Retention)
	require.Equal(t, 32*24*time.Hour, r.DedupeRetention.Of("stripe"))
	require.Equal(t, 8*24*time.Hour, r.DedupeRetention.Of("square"))
	require.Equal(t, Schedule{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
		10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}, r.RetrySchedule)
	require.Equal(t, Bound(120*time.Hour), r.EndpointDisableAfter)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}, r.DeliveryAllowCIDRs)
	require.Equal(t, []uint16{443, 8443, 80}, r.DeliveryAllowPorts)
	require.Empty(t, r.AlertmanagerURL.List())
	require.Equal(t, Positive(time.Minute), r.AlertInterval)
	require.Equal(t, Bound(time.Hour), r.EntitlementsMaxAge)
	require.Nil(t, r.ProcessorSessions)
	k := r.Kafka.Config("127.0.0.1:7")
	require.Equal(t, []string{"127.0.0.1:7"}, k.Brokers)
	require.Equal(t, int32(8), k.Partitions)
	require.Equal(t, int16(1), k.ReplicationFactor)
}

func TestServicesListenEverywhereAndAllowNoPrivateNetwork(t *testing.T) {
	environment(t, nil)
	cli, command, err := Parse([]string{"ingest"}, nil)
	require.NoError(t, err)
	require.Equal(t, "ingest", command)
	require.Equal(t, Addr(":8080"), cli.Ingest.HTTPAddr)
	require.Equal(t, Addr(":8081"), cli.Ingest.AdminAddr)
	require.Empty(t, cli.Ingest.DeliveryAllowCIDRs)
	require.Equal(t, []string{"whsec_a", "whsec_b"}, cli.Ingest.StripeWebhookSecret.List())
	k := cli.Ingest.Kafka.Config("")
	require.Equal(t, []string{"a:1", "b:2"}, k.Brokers)
	require.Equal(t, int32(64), k.Partitions)
	require.Equal(t, int16(3), k.ReplicationFactor)
}

func TestFlagsWinOverTheEnvironment(t *testing.T) {
	environment(t, map[string]string{"RETRY_SCHEDULE": "1s", "RETRY_JITTER": "0"})
	cli, _, err := Parse([]string{"deliverer", "--retry-schedule=10ms, 20ms"}, nil)
	require.NoError(t, err)
	require.Equal(t, Schedule{10 * time.Millisecond, 20 * time.Millisecond}, cli.Deliverer.RetrySchedule)
	require.Equal(t, Fraction(0), cli.Deliverer.RetryJitter)
}

func TestEveryProblemIsOneLineThatNamesTheSetting(t *testing.T) {
	for name, c := range map[string]struct {
		env   map[string]string
		args  string
		wants []string
	}{
		"missing":              {map[string]string{"ADMIN_API_KEY": "-", "SECRETS_KEY": "-"}, "ingest", []string{"ADMIN_API_KEY (--admin-api-key) is required", "SECRETS_KEY"}},
		"missing brokers":      {map[string]string{"KAFKA_BROKERS": "-"}, "processor", []string{"KAFKA_BROKERS", "required"}},
		"empty variable":       {map[string]string{"STRIPE_WEBHOOK_SECRET": ""}, "ingest", []string{"STRIPE_WEBHOOK_SECRET", "set but empty"}},
		"blank variable":       {map[string]string{"ADMIN_API_KEY": " "}, "ingest", []string{"ADMIN_API_KEY", "set but empty"}},
		"empty optional":       {map[string]string{"PLANS_FILE": ""}, "processor", []string{"PLANS_FILE", "set but empty"}},
		"empty flag":           {nil, "processor --plans-file=", []string{"--plans-file", "set but empty"}},
		"empty duration":       {map[string]string{"RETENTION": ""}, "processor", []string{"RETENTION", "set but empty"}},
		"empty of a secret":    {map[string]string{"STRIPE_WEBHOOK_SECRET": "a,,b"}, "ingest", []string{"--stripe-webhook-secret", "secret 2"}},
		"bad key":              {map[string]string{"SECRETS_KEY": "hunter2"}, "deliverer", []string{"--secrets-key", "32 bytes"}},
		"bad address":          {map[string]string{"HTTP_ADDR": "8080"}, "deliverer", []string{"--http-addr", "host:port"}},
		"bad port":             {map[string]string{"ADMIN_ADDR": ":70000"}, "deliverer", []string{"--admin-addr", "65535"}},
		"bad broker":           {map[string]string{"KAFKA_BROKERS": "a:1,b"}, "deliverer", []string{"--kafka-brokers", `"b"`}},
		"bad duration":         {map[string]string{"SHUTDOWN_TIMEOUT": "30"}, "deliverer", []string{"--shutdown-timeout", "SHUTDOWN_TIMEOUT"}},
		"duration of nothing":  {nil, "deliverer --shutdown-timeout=0s", []string{"--shutdown-timeout", "above 0"}},
		"bad schedule":         {map[string]string{"RETRY_SCHEDULE": "5s,,1m"}, "deliverer", []string{"RETRY_SCHEDULE", "duration"}},
		"bad jitter":           {map[string]string{"RETRY_JITTER": "1.5"}, "deliverer", []string{"--retry-jitter", "from 0 to 1"}},
		"not a number jitter":  {map[string]string{"RETRY_JITTER": "NaN"}, "deliverer", []string{"--retry-jitter", "from 0 to 1"}},
		"bad CIDR":             {map[string]string{"DELIVERY_ALLOW_CIDRS": "10.0.0.0"}, "deliverer", []string{"--delivery-allow-cidrs", "10.0.0.0"}},
		"bad level":            {map[string]string{"LOG_LEVEL": "loud"}, "deliverer", []string{"--log-level", "loud"}},
		"timeout too long":     {map[string]string{"DELIVERY_TIMEOUT": "26s"}, "ingest", []string{"DELIVERY_TIMEOUT", "25s"}},
		"no body":              {map[string]string{"MAX_BODY_BYTES": "0"}, "ingest", []string{"MAX_BODY_BYTES", "above 0"}},
		"body too large":       {map[string]string{"MAX_BODY_BYTES": "4194304"}, "ingest", []string{"MAX_BODY_BYTES", "at most 4063232"}},
		"retention too long":   {map[string]string{"DEDUPE_RETENTION": "8h; stripe=769h"}, "processor", []string{"DEDUPE_RETENTION", "769h", "768h"}},
		"negative rate":        {nil, "ingest --endpoint-rate-limit=-1", []string{"--endpoint-rate-limit"}},
		"no database":          {map[string]string{"CLICKHOUSE_URL": "clickhouse://h:9000"}, "processor", []string{"--clickhouse-url", "database"}},
		"password stays in":    {map[string]string{"CLICKHOUSE_URL": "tcp://u:hunter2@h/db"}, "processor", []string{"--clickhouse-url", "scheme"}},
		"URL with a path":      {map[string]string{"PROCESSOR_URL": "http://h/x"}, "ingest", []string{"--processor-url"}},
		"no Alertmanager":      {map[string]string{"ALERTMANAGER_URL": "http://a:9093,b:9093"}, "processor", []string{"--alertmanager-url", "URL 2"}},
		"its password":         {map[string]string{"ALERTMANAGER_URL": "ftp://u:hunter2@a"}, "processor", []string{"--alertmanager-url", "URL 1"}},
		"its whole path":       {map[string]string{"ALERTMANAGER_URL": "http://a:9093/api/v2/alerts/"}, "processor", []string{"ALERTMANAGER_URL", "leave out"}},
		"no sessions":          {map[string]string{"PROCESSOR_SESSIONS": "0"}, "processor", []string{"PROCESSOR_SESSIONS", "from 1"}},
		"no alert interval":    {map[string]string{"ALERT_INTERVAL": "0s"}, "processor", []string{"ALERT_INTERVAL", "above 0"}},
		"age below 0":          {map[string]string{"ENTITLEMENTS_MAX_AGE": "-1s"}, "processor", []string{"ENTITLEMENTS_MAX_AGE", "below 0"}},
		"age without a unit":   {map[string]string{"ENTITLEMENTS_MAX_AGE": "60"}, "processor", []string{"ENTITLEMENTS_MAX_AGE", "duration"}},
		"retention twice":      {map[string]string{"DEDUPE_RETENTION": "1h;2h"}, "processor", []string{"DEDUPE_RETENTION", "twice"}},
		"retention no default": {map[string]string{"DEDUPE_RETENTION": "stripe=2h"}, "processor", []string{"DEDUPE_RETENTION", "plain"}},
		"neither time nor ago": {nil, "dead-letters list --since=yesterday", []string{"--since", "yesterday", "24h"}},
		"empty time":           {nil, "dead-letters replay --until=", []string{"--until", "set but empty"}},
		"unknown flag":         {nil, "ingest --retry-jitter=0", []string{"--retry-jitter"}},
		"unknown command":      {nil, "digest", []string{"digest"}},
		"no command":           {nil, "", []string{"run", "ingest"}},
		"negative partitions":  {map[string]string{"KAFKA_PARTITIONS": "-1"}, "ingest", []string{"KAFKA_PARTITIONS"}},
		"no partitions":        {map[string]string{"KAFKA_PARTITIONS": "0"}, "ingest", []string{"KAFKA_PARTITIONS", "from 1"}},
		"no replicas":          {map[string]string{"KAFKA_REPLICATION_FACTOR": "0"}, "ingest", []string{"KAFKA_REPLICATION_FACTOR", "above 0"}},
		"prefix Kafka refuses": {map[string]string{"KAFKA_TOPIC_PREFIX": "a/b."}, "ingest", []string{"--kafka-topic-prefix", "'/'"}},
		"prefix too long":      {map[string]string{"KAFKA_TOPIC_PREFIX": strings.Repeat("x", 151)}, "ingest", []string{"--kafka-topic-prefix", "150"}},
		"port 0":               {map[string]string{"DELIVERY_ALLOW_PORTS": "443,0"}, "deliverer", []string{"DELIVERY_ALLOW_PORTS", "0 is not a port"}},
		"key with a space":     {map[string]string{"ADMIN_API_KEY": "two words"}, "ingest", []string{"--admin-api-key", "space"}},
		"data below a file":    {map[string]string{"DATA_DIR": "/dev/null/data"}, "ingest", []string{"DATA_DIR", "/dev/null"}},
		"data is a file":       {map[string]string{"DATA_DIR": "settings_test.go"}, "ingest", []string{"DATA_DIR", "is a file"}},
		"plans are missing":    {map[string]string{"PLANS_FILE": "/nowhere/plans.yaml"}, "processor", []string{"PLANS_FILE", "/nowhere/plans.yaml"}},
		"both value and file":  {map[string]string{"ADMIN_API_KEY_FILE": "/dev/null"}, "ingest", []string{"ADMIN_API_KEY", "both"}},
		"file is missing":      {map[string]string{"ADMIN_API_KEY": "-", "ADMIN_API_KEY_FILE": "/nowhere/key"}, "ingest", []string{"ADMIN_API_KEY_FILE", "/nowhere/key"}},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, c.env)
			_, _, err := Parse(strings.Fields(c.args), nil)
			require.Error(t, err)
			for _, want := range c.wants {
				require.Contains(t, err.Error(), want)
			}
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestABoundCanBeTakenAway(t *testing.T) {
	for value, want := range map[string]time.Duration{"0": 0, "0s": 0, "90s": 90 * time.Second} {
		environment(t, map[string]string{"ENTITLEMENTS_MAX_AGE": value})
		cli, _, err := Parse([]string{"processor"}, nil)
		require.NoError(t, err)
		require.Equal(t, Bound(want), cli.Processor.EntitlementsMaxAge)
	}
}

func TestASettingThatACommandDoesNotUseDoesNotStopIt(t *testing.T) {
	environment(t, map[string]string{"RETRY_JITTER": "often", "PLANS_FILE": ""})
	_, _, err := Parse([]string{"ingest"}, nil)
	require.NoError(t, err)
}

func TestSecretsFromFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(path, []byte(key+"\n"), 0o600))
	environment(t, map[string]string{"SECRETS_KEY": "-", "SECRETS_KEY_FILE": path, "CLICKHOUSE_URL": "-", "CLICKHOUSE_URL_FILE": path})

	_, _, err := Parse([]string{"deliverer"}, nil)
	require.ErrorContains(t, err, "CLICKHOUSE_URL", "a file's value is checked like any other")

	cli, _, err := Parse([]string{"ingest"}, nil)
	require.NoError(t, err)
	require.Equal(t, key, string(cli.Ingest.SecretsKey))

	require.NoError(t, os.WriteFile(path, []byte("\n"), 0o600))
	_, _, err = Parse([]string{"ingest"}, nil)
	require.ErrorContains(t, err, "is empty")
}

func TestAlertmanagers(t *testing.T) {
	environment(t, map[string]string{"ALERTMANAGER_URL": "http://a:9093, https://u:hunter2@b/am/"})
	cli, _, err := Parse([]string{"processor"}, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"http://a:9093", "https://u:hunter2@b/am/"}, cli.Processor.AlertmanagerURL.List())
}

func TestMoments(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	require.Zero(t, Moment("").At(now))
	require.Equal(t, now.Add(-24*time.Hour), Moment("24h").At(now))
	require.True(t, now.Equal(Moment("2026-01-31T13:00:00+01:00").At(time.Time{})))

	cli, command, err := Parse(strings.Fields("dead-letters list --kafka-brokers=a:1 --reason=malformed,too_large --since=1h"), nil)
	require.NoError(t, err)
	require.Equal(t, "dead-letters list", command)
	require.Equal(t, []string{"malformed", "too_large"}, cli.DeadLetters.List.Reason)
	require.Equal(t, Moment("1h"), cli.DeadLetters.List.Since)
}

func TestSecretsDoNotPrint(t *testing.T) {
	require.Equal(t, "***", AlertmanagerURLs("http://u:hunter2@a").String())
	require.Equal(t, "***", Secret("hunter2").String())
	require.Equal(t, "***", Secrets("hunter2").String())
	require.Equal(t, "***", SecretsKey("hunter2").String())
	require.Equal(t, "clickhouse://u:xxxxx@h/db", ClickHouseURL("clickhouse://u:hunter2@h/db").String())
}

func TestHelpListsWhatTheCommandUsesAndNothingElse(t *testing.T) {
	t.Setenv("ADMIN_API_KEY", "")
	for command, c := range map[string]struct{ has, hasNot []string }{
		"ingest":              {[]string{"STRIPE_WEBHOOK_SECRET", "PROCESSOR_URL", "Required.", "Default 1048576", "ADMIN_API_KEY_FILE"}, []string{"RETRY_SCHEDULE", "CLICKHOUSE_URL", "EMBEDDED", "dev.env"}},
		"processor":           {[]string{"PLANS_FILE", "CLICKHOUSE_URL", "DEDUPE_RETENTION", "SECRETS_KEY", "ALERTMANAGER_URL", "Default 1m."}, []string{"RETRY_SCHEDULE", "STRIPE_WEBHOOK_SECRET"}},
		"deliverer":           {[]string{"RETRY_SCHEDULE", "DELIVERY_ALLOW_CIDRS"}, []string{"STRIPE_WEBHOOK_SECRET", "PLANS_FILE"}},
		"run":                 {[]string{"EMBEDDED_KAFKA_ADDR", "dev.env", "127.0.0.1:8080"}, []string{"Required.", "PROCESSOR_URL"}},
		"listen":              {[]string{"--answer", "stall"}, []string{"KAFKA_BROKERS"}},
		"dead-letters replay": {[]string{"--again", "--since", "KAFKA_BROKERS", "KAFKA_TOPIC_PREFIX"}, []string{"--body", "Required."}},
	} {
		var out bytes.Buffer
		_, _, err := Parse(append(strings.Fields(command), "--help"), &out)
		require.ErrorIs(t, err, ErrHelp)
		text := strings.Join(strings.Fields(out.String()), " ")
		for _, want := range c.has {
			require.Contains(t, text, want, command)
		}
		for _, not := range c.hasNot {
			require.NotContains(t, text, not, command)
		}
	}
}

func TestVariableAndFlagHaveOneName(t *testing.T) {
	var walk func(reflect.Type)
	walk = func(s reflect.Type) {
		for i := range s.NumField() {
			f := s.Field(i)
			if env, ok := f.Tag.Lookup("env"); ok {
				require.Equal(t, strings.ToUpper(strings.ReplaceAll(f.Tag.Get("name"), "-", "_")), env)
				require.NotEmpty(t, f.Tag.Get("help"), env)
			}
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type)
			}
		}
	}
	for _, command := range []any{Run{}, Ingest{}, Processor{}, Deliverer{}} {
		walk(reflect.TypeOf(command))
	}
}

func FuzzRetention(f *testing.F) {
	f.Add("192h; stripe=768h")
	f.Add("=;=,1h")
	f.Fuzz(func(t *testing.T, text string) {
		var r Retention
		if r.UnmarshalText([]byte(text)) == nil {
			require.Positive(t, r.Of("any"))
			require.Positive(t, r.Of("stripe"))
		}
	})
}
