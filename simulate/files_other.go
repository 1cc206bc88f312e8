//go:build !unix

package simulate

// maxOpenFiles returns how many files this process may have open; 0: any
// number.
func maxOpenFiles() int { return 0 }
