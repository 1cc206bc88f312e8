package optiontable

import (
	"fmt"
	"time"

	"github.com/coder/serpent"
)

// NoArguments refuses arguments that are no flags. They are not repeated: what
// stands there by mistake can be a password.
func NoArguments(next serpent.HandlerFunc) serpent.HandlerFunc {
	return func(inv *serpent.Invocation) error {
		if n := len(inv.Args); n > 0 {
			return fmt.Errorf("%s takes flags only, got %d other arguments: see --help", inv.Command.Name(), n)
		}
		return next(inv)
	}
}

// FlagsOverEnvironment takes out of each list that flags gave what the
// environment had put there before: serpent adds the one to the other.
func FlagsOverEnvironment(inv *serpent.Invocation) error {
	for _, o := range inv.Command.Options {
		if o.Value.Type() != List || o.Env == "" || !inv.ParsedFlags().Changed(o.Flag) {
			continue
		}
		list, ok := o.Value.(*serpent.StringArray)
		if !ok {
			return fmt.Errorf("--%s: want a plain list, got %T", o.Flag, o.Value)
		}
		var before serpent.StringArray
		if err := before.Set(inv.Environ.Get(o.Env)); err != nil {
			return fmt.Errorf("%s: %w", o.Env, err)
		}
		*list = (*list)[min(len(before), len(*list)):]
	}
	return nil
}

// OrNone converts a number of which 0 means none into one of which 0 means the default.
func OrNone[T int | time.Duration](n T) T {
	if n == 0 {
		return -1
	}
	return n
}
