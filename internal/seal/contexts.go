package seal

// Contexts: what a sealed value is and whose. They are authenticated with it and therefore part of the format.

// EndpointSecret is the context of an endpoint's `whsec_…`.
func EndpointSecret(endpointID string) string { return "endpoint/" + endpointID + "/secret" }

// EndpointPrivateKey is the context of an endpoint's `whsk_…`.
func EndpointPrivateKey(endpointID string) string { return "endpoint/" + endpointID + "/private-key" }

// EndpointHeaders is the context of an endpoint's extra request headers.
func EndpointHeaders(endpointID string) string { return "endpoint/" + endpointID + "/headers" }

// ConnectionToken is the context of a connection's access token.
func ConnectionToken(source, account string) string {
	return "connection/" + source + "/" + account + "/token"
}
