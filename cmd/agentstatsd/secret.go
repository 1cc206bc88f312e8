package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// minTokenBytes refuses a token file that was cut short or filled in by hand
// with something guessable.
const minTokenBytes = 16

// readToken returns the token in the file at path. A file that others can read
// is used, with a warning: mounted secrets often cannot be 0600.
func readToken(path string, log *slog.Logger) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read coderd's token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minTokenBytes {
		return "", fmt.Errorf("read coderd's token: %s holds %d bytes, at least %d are needed", path, len(token), minTokenBytes)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("read coderd's token: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("others can read coderd's token", "file", path, "mode", mode.String())
	}
	return token, nil
}

// loadTokenHash returns the SHA-256 of coderd's token in the file at path. It
// makes the file with a random token, mode 0600, if there is none.
func loadTokenHash(path string, log *slog.Logger) ([sha256.Size]byte, error) {
	token, err := readToken(path, log)
	if errors.Is(err, fs.ErrNotExist) {
		token, err = writeToken(path)
		if err == nil {
			log.Info("made a token for coderd", "file", path)
		}
	}
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256([]byte(token)), nil
}

// writeToken makes the file at path with a random token. It never replaces a
// file, and a crash leaves none that is half written.
func writeToken(path string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("make coderd's token: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".coderd-token-*") // 0600
	if err != nil {
		return "", fmt.Errorf("make coderd's token: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	token := rand.Text()
	_, err = f.WriteString(token + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("make coderd's token: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return "", fmt.Errorf("make coderd's token: %w", err)
	}
	return token, nil
}
