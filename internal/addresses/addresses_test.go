package addresses

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestServerOf(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://ada:s3cret@db:5432/stats?password=s3cret": "postgres://db:5432/stats",
		"postgres://ada:s3cret@db1:5432,db2:5432/stats":       "postgres://db1:5432,db2:5432/stats",
		"postgres:///stats?host=/run/postgresql":              "postgres:///stats",
		"nats://s3cret@a:4222,nats://ada:s3cret@b:4222":       "nats://a:4222,b:4222",
		"tls://nats:4222":                     "tls://nats:4222",
		"postgres://ada:s3cret/more@db/stats": "postgres://?",
	} {
		got := ServerOf(url)
		require.NotContains(t, got, "s3cret", url)
		require.Equal(t, want, got)
	}
}

func TestIsPlainURL(t *testing.T) {
	for text, want := range map[string]bool{
		"https://stats.example.com": true, "http://127.0.0.1:2112/a/": true, "https://[::1]/": true,
		"": false, "stats.example.com": false, "https:///a": false, "https://:443": false, "ftp://host": false, "https://ada@host": false,
		"https://host/?": false, "https://host/?a=b": false, "https://host/#a": false, "https://ho st": false,
	} {
		require.Equal(t, want, IsPlainURL(text), text)
	}
}
