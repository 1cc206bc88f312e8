package kept

// Keys are metadata keys, encoded; empty: there are none.
type Keys string

// KeysOf returns what is kept of the keys.
func KeysOf(keys []string) Keys {
	var dst []byte
	for _, key := range keys {
		dst = appendText(dst, key)
	}
	return Keys(dst)
}

// Value returns the keys, as a list of the caller's own.
func (k Keys) Value() (keys []string) {
	for d := (decoder{string(k)}); d.rest != ""; {
		keys = append(keys, d.text())
	}
	return keys
}
