package secrets

import (
	"bytes"
	"fmt"
	"io/fs"
)

const (
	// minTokenBytes refuses a token that was cut short, or filled in by hand with
	// something guessable.
	minTokenBytes = 16
	// maxTokenBytes leaves room for the other headers of a call.
	maxTokenBytes = 4 << 10
)

// ReadToken returns the token in the file at path, without the white space around
// it, and what the file system says about the file.
func ReadToken(path string) (string, fs.FileInfo, error) {
	content, info, err := ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	token, err := parseToken(content)
	if err != nil {
		return "", nil, fmt.Errorf("%s %w", path, err)
	}
	return token, info, nil
}

// parseToken returns the token in the content of a file. Its errors go on where
// the file's name ended, and show nothing of the content.
func parseToken(content []byte) (string, error) {
	switch {
	case bytes.HasPrefix(content, []byte{0xff, 0xfe}), bytes.HasPrefix(content, []byte{0xfe, 0xff}):
		return "", fmt.Errorf("is text in UTF-16: save it in ASCII")
	case bytes.HasPrefix(content, []byte{0xef, 0xbb, 0xbf}):
		return "", fmt.Errorf("begins with a byte order mark: save it without one, in ASCII")
	case bytes.IndexByte(content, 0) >= 0:
		return "", fmt.Errorf("holds NUL bytes, as text in UTF-16 does: save it in ASCII")
	}
	token := bytes.Trim(content, " \t\r\n")
	if bytes.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("has several lines, want one: the token")
	}
	for i, c := range token {
		if c < ' ' || c > '~' {
			return "", fmt.Errorf("has a character that a token cannot have, at byte %d: want printable ASCII", i+1)
		}
	}
	if len(token) < minTokenBytes {
		return "", fmt.Errorf("holds %d bytes, at least %d are needed", len(token), minTokenBytes)
	}
	if len(token) > maxTokenBytes {
		return "", fmt.Errorf("holds %d bytes, at most %d are taken", len(token), maxTokenBytes)
	}
	return string(token), nil
}
