package seal

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	keyA = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	keyB = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
)

func ring(t *testing.T, keys string) *Keyring {
	t.Helper()
	r, err := NewKeyring(keys)
	require.NoError(t, err)
	return r
}

func TestWhatIsSealedOpensForItsContextOnly(t *testing.T) {
	r := ring(t, keyA)
	sealed, err := r.Seal([]byte("whsec_x"), EndpointSecret("ep_1"))
	require.NoError(t, err)
	require.NotContains(t, string(sealed), "whsec_x")

	plain, err := r.Open(sealed, EndpointSecret("ep_1"))
	require.NoError(t, err)
	require.Equal(t, "whsec_x", string(plain))

	_, err = r.Open(sealed, EndpointSecret("ep_2"))
	require.ErrorIs(t, err, ErrCorrupt)
}

func TestSealsOfOneTextDiffer(t *testing.T) {
	r := ring(t, keyA)
	one, err := r.Seal([]byte("x"), "c")
	require.NoError(t, err)
	two, err := r.Seal([]byte("x"), "c")
	require.NoError(t, err)
	require.NotEqual(t, one, two)
}

func TestRotation(t *testing.T) {
	old, err := ring(t, keyA).Seal([]byte("x"), "c")
	require.NoError(t, err)

	both := ring(t, keyB+", "+keyA)
	plain, err := both.Open(old, "c")
	require.NoError(t, err)
	require.Equal(t, "x", string(plain))

	fresh, err := both.Seal([]byte("x"), "c")
	require.NoError(t, err)
	_, err = ring(t, keyB).Open(fresh, "c")
	require.NoError(t, err, "the first key seals")
	_, err = ring(t, keyA).Open(fresh, "c")
	require.ErrorIs(t, err, ErrUnknownKey)
}

// What older versions of the program wrote must open for ever. The bytes were made by Node's crypto.
func TestFormatIsFixed(t *testing.T) {
	sealed, err := hex.DecodeString(
		"01630dcd2900000000000000000000000079d4c6bbd673fb08bcfad6ed72b62350a2bc73d19cf232")
	require.NoError(t, err)
	plain, err := ring(t, keyA).Open(sealed, "c")
	require.NoError(t, err)
	require.Equal(t, "whsec_x", string(plain))
}

func TestEveryChangedByteIsNoticed(t *testing.T) {
	r := ring(t, keyA)
	sealed, err := r.Seal([]byte("secret"), "c")
	require.NoError(t, err)
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		_, err := r.Open(changed, "c")
		require.Error(t, err, "byte %d", i)
	}
	for n := range len(sealed) {
		_, err := r.Open(sealed[:n], "c")
		require.Error(t, err, "cut to %d", n)
	}
}

func TestBadKeysAreRefusedWithoutBeingShown(t *testing.T) {
	for name, keys := range map[string]string{
		"empty":           "",
		"not base64":      "hunter2!",
		"short":           "c2hvcnQ=",
		"trailing comma":  keyA + ",",
		"second is wrong": keyA + ",hunter2",
	} {
		_, err := NewKeyring(keys)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "hunter2", name)
		require.False(t, strings.Contains(err.Error(), "\n"), name)
	}
}

func TestNewKeyIsGoodForARing(t *testing.T) {
	require.NotEqual(t, NewKey(), NewKey())
	ring(t, NewKey())
}

func FuzzOpen(f *testing.F) {
	r, err := NewKeyring(keyA)
	require.NoError(f, err)
	sealed, err := r.Seal([]byte("x"), "c")
	require.NoError(f, err)
	f.Add(sealed, "c")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, b []byte, context string) {
		plain, err := r.Open(b, context)
		if err == nil {
			require.Equal(t, "x", string(plain), "nothing opens that was not sealed")
		}
	})
}
