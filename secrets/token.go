package secrets

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
)

const (
	// minTokenBytes refuses a token that was cut short, or filled in by hand with
	// something guessable.
	minTokenBytes = 16
	// maxTokenBytes leaves room for the other headers of a call.
	maxTokenBytes = 4 << 10
)

// NamedToken is a token with its name in the file.
type NamedToken struct{ Name, Token string }

// DefaultTokenName is the name of a token that is alone in its file, without one.
const DefaultTokenName = "default"

// maxTokens bounds the tokens of a file. Each call compares its own with all.
const maxTokens = 16

// named matches a line of a file with several tokens.
var named = regexp.MustCompile(`^([a-z0-9][a-z0-9._-]{0,31}):[ \t]+(\S.*)$`)

// ReadTokens returns the tokens in the file at path, and what the file system says about
// it. The file has one token, or lines like "name: token". Among several, empty lines and
// those that begin with # say nothing. The first one is what clients are to use.
func ReadTokens(path string) ([]NamedToken, fs.FileInfo, error) {
	content, info, err := ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	tokens, err := parseTokens(content)
	if err != nil {
		return nil, nil, fmt.Errorf("%s %w", path, err)
	}
	return tokens, info, nil
}

// LoadTokens is ReadTokens. A file that others can read is used, with a warning: mounted
// secrets often cannot be 0600. what the tokens are is for errors and the log.
func LoadTokens(what, path string, log *slog.Logger) ([]NamedToken, error) {
	tokens, info, err := ReadTokens(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("others can read "+what, "file", path, "mode", mode.String())
	}
	return tokens, nil
}

// ReadToken returns the first token in the file at path, and what the file system says
// about the file.
func ReadToken(path string) (string, fs.FileInfo, error) {
	tokens, info, err := ReadTokens(path)
	if err != nil {
		return "", nil, err
	}
	return tokens[0].Token, info, nil
}

// parseTokens returns the tokens in the content of a file. Its errors are as those of
// parseToken.
func parseTokens(content []byte) ([]NamedToken, error) {
	trimmed := bytes.Trim(content, " \t\r\n")
	if !bytes.ContainsAny(trimmed, "\r\n") && named.Find(trimmed) == nil {
		token, err := parseToken(content)
		return []NamedToken{{DefaultTokenName, token}}, err
	}
	if err := checkEncoding(content); err != nil {
		return nil, err
	}
	var tokens []NamedToken
	for i, line := range bytes.Split(content, []byte("\n")) {
		line = bytes.Trim(line, " \t\r")
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		match := named.FindSubmatch(line)
		if match == nil {
			return nil, fmt.Errorf("has several lines, of which line %d is not \"name: token\"; a name has a-z, 0-9, and within it . _ -", i+1)
		}
		token, err := parseToken(match[2])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		for _, o := range tokens {
			if o.Name == string(match[1]) {
				return nil, fmt.Errorf("line %d: has the name %s again", i+1, o.Name)
			}
			if o.Token == token {
				return nil, fmt.Errorf("line %d: has the token of %s again", i+1, o.Name)
			}
		}
		tokens = append(tokens, NamedToken{string(match[1]), token})
	}
	if len(tokens) == 0 {
		return nil, errors.New("holds no token")
	}
	if len(tokens) > maxTokens {
		return nil, fmt.Errorf("holds %d tokens, at most %d are taken", len(tokens), maxTokens)
	}
	return tokens, nil
}

// MakeToken makes the file at path with a random token, mode 0600. It never replaces a
// file, which is fs.ErrExist, and a crash leaves none that is half written.
func MakeToken(path string) error {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link to a file that does not exist", path)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := CheckDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".token-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(rand.Text() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// checkEncoding returns what is wrong with the encoding of a file of tokens.
func checkEncoding(content []byte) error {
	switch {
	case bytes.HasPrefix(content, []byte{0xff, 0xfe}), bytes.HasPrefix(content, []byte{0xfe, 0xff}):
		return errors.New("is text in UTF-16: save it in ASCII")
	case bytes.HasPrefix(content, []byte{0xef, 0xbb, 0xbf}):
		return errors.New("begins with a byte order mark: save it without one, in ASCII")
	case bytes.IndexByte(content, 0) >= 0:
		return errors.New("holds NUL bytes, as text in UTF-16 does: save it in ASCII")
	}
	return nil
}

// parseToken returns the token in the content of a file. Its errors go on where
// the file's name ended, and show nothing of the content.
func parseToken(content []byte) (string, error) {
	if err := checkEncoding(content); err != nil {
		return "", err
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
