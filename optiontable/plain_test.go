package optiontable

import (
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
)

// What is said of a value names no function of Go's, whatever the value is.
func TestErrorsOfValuesArePlain(t *testing.T) {
	for _, tc := range []struct {
		value      interface{ Set(text string) error }
		text, want string
	}{
		{new(serpent.Int64), "1e3", `want a whole number, got "1e3"`},
		{new(serpent.Int64), `a"b\`, `want a whole number, got "a\"b\\"`},
		{new(serpent.Int64), "99999999999999999999", `the number "99999999999999999999" is too large`},
		{new(serpent.Bool), "maybe", `want true or false, got "maybe"`},
		{new(serpent.Duration), "5", `want a time such as 30s, 5m or 1h30m, got "5"`},
		{new(serpent.Duration), "5parsecs", `want a time such as 30s, 5m or 1h30m, got "5parsecs"`},
		{new(serpent.Duration), `5"s`, `want a time such as 30s, 5m or 1h30m, got "5\"s"`},
		{new(serpent.Duration), "soon", `want a time such as 30s, 5m or 1h30m, got "soon"`},
	} {
		require.EqualError(t, plainError(tc.value.Set(tc.text)), tc.want)
	}
	require.NoError(t, plainError(nil))
}
