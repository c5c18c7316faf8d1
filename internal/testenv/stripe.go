package testenv

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// stripePackage is Stripe's own library.
const stripePackage = "stripe@23.1.0"

// signScript answers each line {payload, secret} with the stripe-signature header.
const signScript = `
const stripe = new (require("stripe"))("sk_test_unused");
require("readline").createInterface({input: process.stdin}).on("line", line => {
  console.log(stripe.webhooks.generateTestHeaderString(JSON.parse(line)));
});
`

// StripeSigner signs payloads with Stripe's own library for Node.js: the header stripe-signature, with the present time.
func StripeSigner(t testing.TB) func(payload []byte, secret string) string {
	t.Helper()
	in, lines := startNode(t, signScript, stripePackage)
	var mu sync.Mutex
	return func(payload []byte, secret string) string {
		mu.Lock()
		defer mu.Unlock()
		require.NoError(t, json.NewEncoder(in).Encode(map[string]string{"payload": string(payload), "secret": secret}))
		header, err := lines.ReadString('\n')
		require.NoError(t, err)
		return strings.TrimSpace(header)
	}
}
