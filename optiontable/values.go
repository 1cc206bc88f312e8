package optiontable

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/coder/serpent"
)

// No option is larger, so that nothing which is made of one overflows.
const (
	largestInteger  = 1 << 40
	longestDuration = 10 * 365 * 24 * time.Hour
)

// AtLeast is an integer option that refuses values below least.
func AtLeast(v *int64, least int64) *serpent.Validator[*serpent.Int64] {
	return Within(v, least, largestInteger)
}

// Within is an integer option that refuses values below least and above most.
func Within(v *int64, least, most int64) *serpent.Validator[*serpent.Int64] {
	return serpent.Validate(serpent.Int64Of(v), func(v *serpent.Int64) error {
		switch n := int64(*v); {
		case n < least:
			return fmt.Errorf("%d is below the least value %d", n, least)
		case n > most:
			return fmt.Errorf("%d is above the largest value %d", n, most)
		}
		return nil
	})
}

// Positive is a duration option that refuses 0 and below.
func Positive(v *time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		if d <= 0 {
			return fmt.Errorf("%s is not longer than 0s", d)
		}
		return nil
	})
}

// NotBelow is a duration option that refuses values below least.
func NotBelow(v *time.Duration, least time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		if d < least {
			return fmt.Errorf("%s is below the least value %s", d, least)
		}
		return nil
	})
}

// DurationWithin is a duration option that refuses values below least and above most.
func DurationWithin(v *time.Duration, least, most time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		switch {
		case d < least:
			return fmt.Errorf("%s is below the least value %s", d, least)
		case d > most:
			return fmt.Errorf("%s is above the largest value %s", d, most)
		}
		return nil
	})
}

// ZeroOrNotBelow is a duration option that refuses values below least but 0.
func ZeroOrNotBelow(v *time.Duration, least time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		if d != 0 && d < least {
			return fmt.Errorf("%s is neither 0s nor at least %s", d, least)
		}
		return nil
	})
}

// duration is a duration option with a check.
func duration(v *time.Duration, check func(time.Duration) error) *serpent.Validator[*serpent.Duration] {
	return serpent.Validate(serpent.DurationOf(v), func(v *serpent.Duration) error {
		d := time.Duration(*v)
		if d > longestDuration {
			return fmt.Errorf("%s is above the largest value %s", d, longestDuration)
		}
		return check(d)
	})
}

// Bytes is a number of bytes, such as 65536, 64KiB or 512MiB.
type Bytes int64

// units are those of Bytes, the largest first.
var units = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// Set implements pflag.Value.
func (b *Bytes) Set(text string) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || strings.HasPrefix(number, "-") {
			return fmt.Errorf("want bytes such as 65536, 64KiB or 512MiB, got %q", text)
		}
		if high, low := bits.Mul64(uint64(n), uint64(u.size)); high != 0 || low > largestInteger {
			return fmt.Errorf("%s is above the largest value %s", text, FormatBytes(largestInteger))
		}
		*b = Bytes(n * u.size)
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fmt.Errorf("want bytes such as 65536, 64KiB or 512MiB, got %q", text)
	}
	*b = Bytes(n)
	return nil
}

// String implements pflag.Value.
func (b *Bytes) String() string { return FormatBytes(int64(*b)) }

// Type implements pflag.Value.
func (*Bytes) Type() string { return SizeType }

// SizeType is the type of options that are Bytes.
const SizeType = "bytes"

// FormatBytes returns a number of bytes in the largest unit of which it is a multiple.
func FormatBytes(n int64) string {
	for _, u := range units[:len(units)-1] {
		if n != 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// BytesAtLeast is an option of bytes that refuses values below least.
func BytesAtLeast(v *int64, least int64) *serpent.Validator[*Bytes] {
	return serpent.Validate((*Bytes)(v), func(v *Bytes) error {
		switch n := int64(*v); {
		case n < least:
			return fmt.Errorf("%s is below the least value %s", FormatBytes(n), FormatBytes(least))
		case n > largestInteger:
			return fmt.Errorf("%s is above the largest value %s", FormatBytes(n), FormatBytes(largestInteger))
		}
		return nil
	})
}
