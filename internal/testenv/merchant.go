package testenv

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Verifiers of a Merchant: npm's libraries, and the ed25519 signatures of Standard Webhooks, which neither reads.
const (
	StandardWebhooks = "standardwebhooks"
	Svix             = "svix"
	Ed25519          = "ed25519"
)

// merchantPackages are the libraries. This svix brings standardwebhooks 1.0.0; the next needs Node.js 22.
var merchantPackages = []string{"standardwebhooks@1.1.1", "svix@1.99.1"}

// merchantScript is a receiver as the libraries' manuals have it: 204, or 400 with what the library says.
const merchantScript = `
const crypto = require("node:crypto");
class Ed25519 {
  constructor(key) {
    const raw = Buffer.from(key.replace(/^whpk_/, ""), "base64");
    const spki = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), raw]);
    this.key = crypto.createPublicKey({key: spki, format: "der", type: "spki"});
  }
  verify(body, headers) {
    const message = Buffer.concat([Buffer.from(headers["webhook-id"] + "." + headers["webhook-timestamp"] + "."), body]);
    const signed = headers["webhook-signature"].split(" ").some(one => {
      const [version, signature] = one.split(",");
      return version === "v1a" && crypto.verify(null, message, this.key, Buffer.from(signature, "base64"));
    });
    if (!signed) throw new Error("No matching signature found");
  }
}
const verifiers = {standardwebhooks: require("standardwebhooks").Webhook, svix: require("svix").Webhook, ed25519: Ed25519};
require("node:http").createServer((req, res) => {
  const url = new URL(req.url, "http://merchant"), chunks = [];
  req.on("data", chunk => chunks.push(chunk)).on("end", () => {
    try {
      new verifiers[url.pathname.slice(1)](url.searchParams.get("key")).verify(Buffer.concat(chunks), req.headers);
      res.writeHead(204).end();
    } catch (refused) {
      res.writeHead(400).end(refused.message);
    }
  });
}).listen(0, "127.0.0.1", function () { console.log("http://127.0.0.1:" + this.address().port); });
process.stdin.resume().on("end", () => process.exit(0));
`

// Merchant is a receiver in Node.js on 127.0.0.1 that accepts what verifies. It is the URL that it answers.
type Merchant string

// NewMerchant starts a receiver that ends with the test.
func NewMerchant(t testing.TB) Merchant {
	t.Helper()
	_, out := startNode(t, merchantScript, merchantPackages...)
	line, err := out.ReadString('\n')
	require.NoError(t, err)
	return Merchant(strings.TrimSpace(line))
}

// URL is where one of the verifiers answers, with an endpoint's secret or public key.
func (m Merchant) URL(verifier, key string) string {
	return string(m) + "/" + verifier + "?key=" + url.QueryEscape(key)
}
