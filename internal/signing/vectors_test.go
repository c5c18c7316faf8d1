package signing

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/testenv"
)

type vector struct {
	Name, Secret, ID, Body, Signature string
	SigningKey                        string `json:"signing_key"`
	PublicKey                         string `json:"public_key"`
	Timestamp                         int64
}

// edit changes a positive vector.
type edit struct {
	Why    string
	Base   int
	Drop   string
	Set    map[string]string
	Body   *string
	Secret *string
	Now    *int64
}

type vectorFile struct {
	V1       []vector `json:"positive_v1"`
	V1a      []vector `json:"positive_v1a"`
	Multi    []edit   `json:"positive_multi"`
	Negative []edit
}

func vectors(t *testing.T) vectorFile {
	t.Helper()
	var f vectorFile
	require.NoError(t, json.Unmarshal(testenv.Fixture(t, "standard-webhooks/vectors.json"), &f))
	require.NotEmpty(t, f.V1)
	require.NotEmpty(t, f.V1a)
	require.NotEmpty(t, f.Multi)
	require.NotEmpty(t, f.Negative)
	return f
}

func TestVectorsV1(t *testing.T) {
	for _, v := range vectors(t).V1 {
		t.Run(v.Name, func(t *testing.T) {
			// One vector's key is shorter than what we would take for an endpoint.
			key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(v.Secret, SecretPrefix))
			require.NoError(t, err)
			require.Equal(t, v.Signature, StandardV1(key, v.ID, v.Timestamp, []byte(v.Body)))
		})
	}
}

func TestVectorsV1a(t *testing.T) {
	for _, v := range vectors(t).V1a {
		t.Run(v.Name, func(t *testing.T) {
			key, err := ParsePrivateKey(v.SigningKey)
			require.NoError(t, err)
			require.Equal(t, v.Signature, StandardV1a(key, v.ID, v.Timestamp, []byte(v.Body)))
			require.NoError(t, verifyVector(v, v.PublicKey, edit{}))
		})
	}
}

func TestVectorsThatVerify(t *testing.T) {
	f := vectors(t)
	for _, v := range f.V1 {
		require.NoError(t, verifyVector(v, v.Secret, edit{}), v.Name)
	}
	for _, e := range f.Multi {
		require.NoError(t, verifyVector(f.V1[e.Base], f.V1[e.Base].Secret, e), e.Why)
	}
}

func TestVectorsThatDoNotVerify(t *testing.T) {
	f := vectors(t)
	for _, e := range f.Negative {
		err := verifyVector(f.V1[e.Base], f.V1[e.Base].Secret, e)
		switch {
		case strings.HasPrefix(e.Why, "missing"):
			require.ErrorIs(t, err, ErrMissing, e.Why)
		case e.Now != nil:
			require.ErrorIs(t, err, ErrTimestamp, e.Why)
		default:
			require.ErrorIs(t, err, ErrInvalid, e.Why)
		}
	}
}

func verifyVector(v vector, key string, e edit) error {
	h := http.Header{}
	h.Set(HeaderID, v.ID)
	h.Set(HeaderTimestamp, jsonNumber(v.Timestamp))
	h.Set(HeaderSignature, v.Signature)
	for name, value := range e.Set {
		h.Set(name, value)
	}
	h.Del(e.Drop)
	now, body := v.Timestamp, v.Body
	if e.Now != nil {
		now = *e.Now
	}
	if e.Body != nil {
		body = *e.Body
	}
	if e.Secret != nil {
		key = *e.Secret
	}
	received := StandardHeaders{ID: h.Get(HeaderID), Timestamp: h.Get(HeaderTimestamp), Signature: h.Get(HeaderSignature)}
	return VerifyStandard(received, []string{key}, []byte(body), time.Unix(now, 0), Tolerance)
}

func jsonNumber(n int64) string {
	b, _ := json.Marshal(n)
	return string(b)
}
