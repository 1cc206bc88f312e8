package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestUsageErrorsShowNoSecrets starts the program wrongly in each way in which
// serpent repeats what it was given.
func TestUsageErrorsShowNoSecrets(t *testing.T) {
	const secret = "SE@CRET"
	url := "postgres://u:" + secret + "@h/db"
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":       {[]string{"serve", "--database-url", url, "--nope"}, "unknown flag: --nope"},
		"unknown short flag": {[]string{"serve", "-" + url}, "unknown shorthand flag: 'p'"},
		"flag without value": {[]string{"serve", "--database-url=" + url, "--data-dir"}, "flag needs an argument: --data-dir"},
		"bad value":          {[]string{"serve", "--database-url", url, "--max-series", "0"}, `invalid argument "0" for "--max-series" flag: 0 is below the least value 1`},
		"bad value is it":    {[]string{"serve", "--max-series", url}, "--max-series"},
		"bad flag syntax":    {[]string{"serve", "--=" + secret}, "bad flag syntax"},
		"short flags":        {[]string{"serve", "-p" + secret}, "unknown shorthand flag: 'p'"},
		"blank in it":        {[]string{"serve", "--max-series", "postgres://u:x " + secret + "@h/db"}, "--max-series"},
		"argument":           {[]string{"serve", url}, "serve takes flags only, got 1 other arguments"},
		"token":              {[]string{"version", secret}, "version takes flags only"},
		"unknown command":    {[]string{url}, "the first argument is no command"},
		"token as command":   {[]string{secret}, "the first argument is no command"},
		"unescaped":          {[]string{"serve", "--database-url", url}, "--database-url has an @, # or ? where none belongs"},
		"unescaped slash":    {[]string{"serve", "--database-url", "postgres://u:12/" + secret + "@h/db"}, "--database-url has an @"},
		"unescaped mark":     {[]string{"serve", "--pubsub-url", "postgres://u:1?" + secret + "@h/db"}, "--pubsub-url has an @"},
		"unescaped hash":     {[]string{"serve", "--database-url", "postgres://u:1#" + secret + "@h/db"}, "--database-url has an @"},
		"scheme":             {[]string{"serve", "--database-url", "mysql://u:" + secret + "@h"}, "--database-url: want a URL with the scheme postgres"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // what starts nevertheless ends at once
			err := rootCommand().Invoke(tc.args...).WithContext(ctx).Run()
			require.Error(t, err)
			text := userError(err)
			require.Contains(t, text, tc.want)
			require.NotContains(t, text, "CRET")
			require.NotContains(t, text, "parsing flags")
		})
	}
}

func TestUserErrorIsALineEach(t *testing.T) {
	require.Equal(t, "a: b\nc", userError(errors.Join(fmt.Errorf("a: %w", errors.New("b")), errors.New("c"))))
}
