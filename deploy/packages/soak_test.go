//go:build soak

package main

import "testing"

// Lintian reads all texts of the program, which takes it half a minute.
func TestLintianOfProgram(t *testing.T) { lintian(t, program) }
