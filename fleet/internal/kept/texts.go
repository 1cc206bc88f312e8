// Package kept has registrations, workspaces and states of agents as they are kept in
// memory: in a tenth of what the values of package agent take. What is kept is never
// changed.
package kept

import "unsafe"

// Texts are the encoded texts that registrations and workspaces share, each once. The
// owner locks them.
type Texts struct {
	all map[string]*text
	// bytes estimates the memory of all.
	bytes  int64
	buffer []byte
}

// text is what some registrations or workspaces have in common.
type text struct {
	encoded string
	users   int
}

// NewTexts returns no texts.
func NewTexts() *Texts { return &Texts{all: make(map[string]*text)} }

// Bytes estimates the memory of all texts.
func (t *Texts) Bytes() int64 { return t.bytes }

// textBytes estimates the memory of a text and of its place in the map, which is 0.65 full
// on average.
func textBytes(encoded int) int64 {
	const key = unsafe.Sizeof("") + unsafe.Sizeof((*text)(nil))
	return int64(encoded) + int64(unsafe.Sizeof(text{})+8) + int64(key)*3/2
}

// retain returns the shared text.
func (t *Texts) retain(encoded []byte) *text {
	shared := t.all[string(encoded)]
	if shared == nil {
		shared = &text{encoded: string(encoded)}
		t.all[shared.encoded] = shared
		t.bytes += textBytes(len(encoded))
	}
	shared.users++
	return shared
}

func (t *Texts) release(shared *text) {
	if shared.users--; shared.users == 0 {
		delete(t.all, shared.encoded)
		t.bytes -= textBytes(len(shared.encoded))
	}
}
