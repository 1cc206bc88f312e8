package main

import (
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
		"argument":           {[]string{"serve", url}, "wanted no args"},
		"parameter":          {[]string{"serve", "postgres://h/db?sslpassword=" + secret}, "wanted no args"},
		"unknown command":    {[]string{url}, "there is no command"},
		"scheme":             {[]string{"serve", "--database-url", "mysql://u:" + secret + "@h"}, "--database-url: want a URL with the scheme postgres"},
	} {
		t.Run(name, func(t *testing.T) {
			err := rootCommand().Invoke(tc.args...).Run()
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
