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

	"github.com/coder/agentstatsd/secrets"
)

// readToken returns the token in the file at path. A file that others can read
// is used, with a warning: mounted secrets often cannot be 0600.
func readToken(path string, log *slog.Logger) (string, error) {
	token, info, err := secrets.ReadToken(path)
	if err != nil {
		return "", fmt.Errorf("read coderd's token: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("others can read coderd's token", "file", path, "mode", mode.String())
	}
	return token, nil
}

// loadTokenHash returns the SHA-256 of coderd's token in the file at path. It
// makes the file with a random token, mode 0600, if there is none. If own, the file
// is one that only the service itself makes: one that somebody else may have put
// there is refused.
func loadTokenHash(path string, own bool, log *slog.Logger) ([sha256.Size]byte, error) {
	if own {
		if err := secrets.CheckOwn(path); err != nil {
			return [sha256.Size]byte{}, fmt.Errorf("read coderd's token: %w", err)
		}
	}
	token, err := readToken(path, log)
	if errors.Is(err, fs.ErrNotExist) {
		token, err = writeToken(path)
		switch {
		case err == nil:
			log.Info("made a token for coderd", "file", path)
		case errors.Is(err, fs.ErrExist): // another process was first
			return loadTokenHash(path, own, log)
		}
	}
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256([]byte(token)), nil
}

// writeToken makes the file at path with a random token. It never replaces a
// file, which is fs.ErrExist, and a crash leaves none that is half written.
func writeToken(path string) (string, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return "", fmt.Errorf("make coderd's token: %s is a symbolic link to a file that does not exist", path)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make coderd's token: %w", err)
	}
	if err := secrets.CheckDir(dir); err != nil {
		return "", fmt.Errorf("make coderd's token: %w", err)
	}
	f, err := os.CreateTemp(dir, ".coderd-token-*") // 0600
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
