// Package durable makes what was done to files survive a loss of power.
package durable

import (
	"errors"
	"fmt"
	"os"
)

// SyncDir makes the names in a directory as durable as the content of their files.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
