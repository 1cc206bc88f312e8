package scrape

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChooseGzip(t *testing.T) {
	const plain, gzip, neither = "plain", "gzip", "neither"
	for value, want := range map[string]string{
		"":                             plain,
		"gzip":                         gzip,
		"x-gzip":                       gzip,
		"GZIP;q=0.5":                   gzip,
		"br;q=1.0, gzip;q=0.8, *":      gzip,
		"gzip;q=0":                     plain,
		"gzip;Q=0":                     plain,
		"gzip; q=0.000":                plain,
		"gzip;q=0.0":                   plain,
		"gzip;q=0.":                    plain,
		"gzip\t;\tQ=0.001":             gzip,
		"gzip;level=9;q=0":             plain,
		"gzip;q=1.000":                 gzip,
		"gzip;q=1.001":                 plain,
		"gzip;q=0.0001":                plain,
		"gzip;q=+1":                    plain,
		"gzip;q=1e0":                   plain,
		"gzip;q=":                      plain,
		"gzip;q=much":                  plain,
		"*":                            gzip,
		"*;q=0":                        neither,
		"*;q=0, identity;q=0.1":        plain,
		"*;q=0, gzip":                  gzip,
		"*;q=0, gzip;q=0":              neither,
		"gzip;q=0, *;q=1":              plain,
		"*;q=1, gzip;q=0":              plain,
		"identity":                     plain,
		"identity;q=0":                 neither,
		"identity;q=0, gzip":           gzip,
		"identity;q=0, *":              gzip,
		"Identity;Q=0.000, gzip;Q=0.0": neither,
		"identity;q=1, gzip;q=0.5":     plain,
		"identity;q=0.5, gzip;q=0.5":   gzip,
		"identity, *;q=0.5":            plain,
		"deflate, br":                  plain,
		"zstd, gzip;q=0.5, br;q=.1":    gzip,
		"gzip;q=0, gzip":               gzip,
		",,gzip,":                      gzip,
	} {
		var values []string
		if value != "" {
			values = []string{value}
		}
		compress, ok := chooseGzip(values)
		got := map[[2]bool]string{{false, true}: plain, {true, true}: gzip, {false, false}: neither}[[2]bool{compress, ok}]
		require.Equal(t, want, got, value)
	}
	compress, ok := chooseGzip([]string{"deflate", "gzip"})
	require.True(t, compress && ok, "a header that stands twice is one")
}

func TestNeitherEncodingIsNotAcceptable(t *testing.T) {
	w := get(t, newHandler(t, own(), Options{}, onePart()), "Accept-Encoding", "gzip;Q=0, identity;Q=0")
	require.Equal(t, http.StatusNotAcceptable, w.Code)
	require.Empty(t, w.Header().Get("Content-Encoding"))
	require.Equal(t, http.StatusOK, get(t, newHandler(t, own(), Options{}, onePart()), "Accept-Encoding", "gzip;Q=0").Code)
}
