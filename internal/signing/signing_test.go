package signing

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
)

const (
	testID = "evt_7pzk4ebfmkgv9v11yc6xq1bbej"
	testTS = int64(1_780_000_000)
)

var (
	testBody = []byte(`{"id":"x","data":{}}`)
	testNow  = time.Unix(testTS, 0)
)

func signer(t testing.TB, secrets []string, v1 bool, private ...string) *Signer {
	t.Helper()
	s, err := NewSigner(secrets, v1, private)
	require.NoError(t, err)
	return s
}

func TestTheReferenceLibraryVerifiesWhatWeSign(t *testing.T) {
	current, old := NewSecret(), NewSecret()
	private, _ := NewKeyPair()
	now := time.Now().Unix()
	header := http.Header{}
	header.Set(HeaderID, testID)
	header.Set(HeaderTimestamp, strconv.FormatInt(now, 10))
	header.Set(HeaderSignature, string(signer(t, []string{current, old}, true, private).AppendStandard(nil, testID, now, testBody)))
	for _, secret := range []string{current, old} {
		reference, err := standardwebhooks.NewWebhook(secret)
		require.NoError(t, err)
		require.NoError(t, reference.Verify(testBody, header))
		require.Error(t, reference.Verify([]byte("{}"), header))
	}
}

func TestWeVerifyWhatTheReferenceLibrarySigns(t *testing.T) {
	secret := NewSecret()
	reference, err := standardwebhooks.NewWebhook(secret)
	require.NoError(t, err)
	signature, err := reference.Sign(testID, testNow, testBody)
	require.NoError(t, err)
	h := StandardHeaders{ID: testID, Timestamp: strconv.FormatInt(testTS, 10), Signature: signature}
	require.NoError(t, VerifyStandard(h, []string{NewSecret(), secret}, testBody, testNow, Tolerance))
	require.ErrorIs(t, VerifyStandard(h, []string{NewSecret()}, testBody, testNow, Tolerance), ErrInvalid)
}

func TestSignerSignsWithEveryKeyInOrder(t *testing.T) {
	a, b := NewSecret(), NewSecret()
	keyA, err := ParseSecret(a)
	require.NoError(t, err)
	private, public := NewKeyPair()
	ed, err := ParsePrivateKey(private)
	require.NoError(t, err)
	v1a := StandardV1a(ed, testID, testTS, testBody)

	both := string(signer(t, []string{a, b}, true, private).AppendStandard([]byte("x: "), testID, testTS, testBody))
	items := strings.Split(strings.TrimPrefix(both, "x: "), " ")
	require.Len(t, items, 3)
	require.Equal(t, StandardV1(keyA, testID, testTS, testBody), items[0])
	require.Equal(t, v1a, items[2])

	only := signer(t, []string{a}, false, private)
	require.Equal(t, v1a, string(only.AppendStandard(nil, testID, testTS, testBody)))
	require.Equal(t, BetterData(a, testTS, testBody), string(only.AppendBetterData(nil, testTS, testBody)),
		"x-betterdata-signature is always there")

	h := StandardHeaders{ID: testID, Timestamp: strconv.FormatInt(testTS, 10), Signature: v1a}
	require.NoError(t, VerifyStandard(h, []string{public}, testBody, testNow, Tolerance))
	_, other := NewKeyPair()
	require.ErrorIs(t, VerifyStandard(h, []string{other}, testBody, testNow, Tolerance), ErrInvalid)
}

func TestBetterDataIsHMACWithTheWholeSecretText(t *testing.T) {
	secret := NewSecret()
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("1780000000." + string(testBody)))
	want := "t=1780000000,v1=" + hex.EncodeToString(mac.Sum(nil))
	require.Equal(t, want, BetterData(secret, testTS, testBody))
	require.Equal(t, want, string(signer(t, []string{secret}, true).AppendBetterData(nil, testTS, testBody)))
}

func TestVerifyBetterData(t *testing.T) {
	secret := "some text, not a whsec_"
	good := BetterData(secret, testTS, testBody)
	mac := good[len("t=1780000000,"):]
	wrong := "v1=" + strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		header string
		at     time.Duration
		want   error
	}{
		"right":                    {good, 0, nil},
		"300 s old passes":         {good, 300 * time.Second, nil},
		"300.9 s old passes":       {good, 300*time.Second + 900*time.Millisecond, nil},
		"301 s old":                {good, 301 * time.Second, ErrTimestamp},
		"300 s early passes":       {good, -300 * time.Second, nil},
		"301 s early":              {good, -301 * time.Second, ErrTimestamp},
		"wrong before late":        {"t=1780000000," + wrong, 301 * time.Second, ErrInvalid},
		"second v1 right":          {"t=1780000000," + wrong + "," + mac, 0, nil},
		"time last":                {mac + ",t=1780000000", 0, nil},
		"v0 is ignored":            {good + ",v0=abc", 0, nil},
		"only v0":                  {"t=1780000000,v0" + mac[2:], 0, ErrInvalid},
		"absent":                   {"", 0, ErrMissing},
		"no time":                  {mac, 0, ErrInvalid},
		"two times":                {good + ",t=1780000000", 0, ErrInvalid},
		"time with a sign":         {"t=+1780000000," + mac, 0, ErrInvalid},
		"time with a leading zero": {"t=01780000000," + mac, 0, ErrInvalid},
		"time too large":           {"t=99999999999999999999," + mac, 0, ErrInvalid},
		"upper-case hex":           {"t=1780000000,v1=" + strings.ToUpper(mac[3:]), 0, ErrInvalid},
		"cut":                      {good[:len(good)-1], 0, ErrInvalid},
		"empty v1":                 {"t=1780000000,v1=", 0, ErrInvalid},
		"spaces":                   {strings.ReplaceAll(good, ",", ", "), 0, ErrInvalid},
	} {
		err := VerifyBetterData(c.header, []string{"other", secret}, testBody, testNow.Add(c.at), Tolerance)
		if c.want == nil {
			require.NoError(t, err, name)
			continue
		}
		require.ErrorIs(t, err, c.want, name)
	}
	require.ErrorIs(t, VerifyBetterData(good, nil, testBody, testNow, Tolerance), ErrInvalid, "no secret, no entry")
}

func TestParseSecret(t *testing.T) {
	text := func(n int) string { return SecretPrefix + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for name, c := range map[string]struct {
		secret string
		ok     bool
	}{
		"fresh":       {NewSecret(), true},
		"24 bytes":    {text(24), true},
		"64 bytes":    {text(64), true},
		"23 bytes":    {text(23), false},
		"65 bytes":    {text(65), false},
		"no prefix":   {strings.TrimPrefix(NewSecret(), SecretPrefix), false},
		"not base64":  {SecretPrefix + strings.Repeat("?", 32), false},
		"private key": {PrivateKeyPrefix + text(32)[len(SecretPrefix):], false},
		"empty":       {SecretPrefix + "====", false},
		"line end":    {text(24) + "\n", false},
	} {
		_, err := ParseSecret(c.secret)
		if c.ok {
			require.NoError(t, err, name)
			continue
		}
		require.ErrorIs(t, err, ErrKey, name)
		require.NotContains(t, err.Error(), c.secret, name)
	}
}

func TestPrivateKeyWithForeignPublicHalfIsRefused(t *testing.T) {
	one, _ := NewKeyPair()
	two, _ := NewKeyPair()
	raw := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, PrivateKeyPrefix))
		require.NoError(t, err)
		return b
	}
	mixed := append(raw(one)[:32], raw(two)[32:]...)
	_, err := ParsePrivateKey(PrivateKeyPrefix + base64.StdEncoding.EncodeToString(mixed))
	require.ErrorIs(t, err, ErrKey)
	_, err = NewSigner([]string{NewSecret()}, true, []string{"whsk_x"})
	require.ErrorIs(t, err, ErrKey)
	_, err = NewSigner([]string{"whsec_x"}, true, nil)
	require.ErrorIs(t, err, ErrKey)
}

func TestSignerIsSafeForManyGoroutines(t *testing.T) {
	private, _ := NewKeyPair()
	s := signer(t, []string{NewSecret(), NewSecret()}, true, private)
	standard := string(s.AppendStandard(nil, testID, testTS, testBody))
	betterData := string(s.AppendBetterData(nil, testTS, testBody))
	var wg sync.WaitGroup
	wrong := make(chan string, 16)
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if got := string(s.AppendStandard(nil, testID, testTS, testBody)); got != standard {
					wrong <- got
				}
				if got := string(s.AppendBetterData(nil, testTS, testBody)); got != betterData {
					wrong <- got
				}
			}
		})
	}
	wg.Wait()
	require.Empty(t, wrong)
}

func BenchmarkSigner(b *testing.B) {
	s := signer(b, []string{NewSecret()}, true)
	body := []byte(strings.Repeat("x", 2048))
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		dst = s.AppendStandard(dst[:0], testID, testTS, body)
		dst = s.AppendBetterData(dst[:0], testTS, body)
	}
}

func FuzzVerifyBetterData(f *testing.F) {
	f.Add("t=1780000000,v1="+strings.Repeat("0", 64), "secret")
	f.Add("t=,v1=,,=", "s")
	f.Fuzz(func(t *testing.T, header, secret string) {
		err := VerifyBetterData(header, []string{secret}, testBody, testNow, Tolerance)
		if err == nil {
			require.Contains(t, header, BetterData(secret, testTS, testBody)[len("t=1780000000,"):])
		}
	})
}

func FuzzVerifyStandard(f *testing.F) {
	key := NewSecret()
	f.Add("msg_1", "1780000000", "v1,AAAA v1a,AAAA")
	f.Add("", "", "")
	f.Add("msg_1", "-1", " , ")
	f.Fuzz(func(t *testing.T, id, timestamp, signature string) {
		h := StandardHeaders{ID: id, Timestamp: timestamp, Signature: signature}
		require.Error(t, VerifyStandard(h, []string{key}, testBody, testNow, Tolerance), "nobody guesses a signature")
	})
}
