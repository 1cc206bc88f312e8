// Package redact takes secrets out of texts of others, before they are logged or shown.
package redact

import "regexp"

// Secrets as they stand in texts. A password is in a URL's user part, or in a parameter of
// PostgreSQL's URLs and connection strings. A user part ends at the last @ of the quoted
// text or the line. In a URL of NATS it may be a token alone. A private key is PEM, also
// quoted, whole or cut off. A token of a call stands behind "Bearer".
var (
	urlPassword       = regexp.MustCompile(`(://[^:/@\s]*:)(?:[^"\n]|"[^ \n])+@`)
	natsToken         = regexp.MustCompile(`(\b(?:nats|tls|wss?)://)[^:/@\s"]+@`)
	parameterPassword = regexp.MustCompile(`(?i)((?:ssl)?password=)(?:'(?:[^'\\]|\\.)*'|[^&\s]+)`)
	privateKey        = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`)
	bearerToken       = regexp.MustCompile(`(?i)(\bbearer[ :"\\]+)[^\s"\\\]]+`)
)

// Text returns a text without the passwords, private keys and tokens in it, as far as they
// can be recognised.
func Text(text string) string {
	text = privateKey.ReplaceAllLiteralString(text, "(a private key)")
	text = urlPassword.ReplaceAllString(text, "${1}xxxxx@")
	text = natsToken.ReplaceAllString(text, "${1}xxxxx@")
	text = parameterPassword.ReplaceAllString(text, "${1}xxxxx")
	return bearerToken.ReplaceAllString(text, "${1}xxxxx")
}
