//go:build !race

package bubble

func oneThread() (restore func()) { return func() {} }
