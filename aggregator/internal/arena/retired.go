package arena

// retiredLine is shown by the scrapes of generations up to last.
type retiredLine struct {
	from remover
	slot uint32
	last uint32
}

// remover frees the slot of a line. It is a block, or rows.
type remover interface{ Remove(slot uint32) }

// retiredChunk is how many lines one chunk has: 12 KB. While a large scrape is under way,
// millions of lines may be retired. To copy them all to a longer list would take longer
// than others may wait for the lock.
const retiredChunk = 512

// retiredLines is a queue of lines, whose last generations do not fall.
type retiredLines struct {
	chunks [][]retiredLine
}

func (q *retiredLines) add(l retiredLine) {
	n := len(q.chunks)
	if n == 0 || len(q.chunks[n-1]) == cap(q.chunks[n-1]) {
		// The first of a queue is small: mostly a few states change.
		size := retiredChunk
		if n == 0 {
			size = 8
		}
		q.chunks = append(q.chunks, make([]retiredLine, 0, size))
		n++
	}
	q.chunks[n-1] = append(q.chunks[n-1], l)
}

// takeBefore removes and returns lines whose last generation is before oldest, of one chunk; none:
// there are no more.
func (q *retiredLines) takeBefore(oldest uint32) (taken []retiredLine) {
	if len(q.chunks) == 0 {
		return nil
	}
	first := q.chunks[0]
	n := 0
	for n < len(first) && first[n].last < oldest {
		n++
	}
	if n < len(first) {
		q.chunks[0] = first[n:]
		return first[:n]
	}
	if q.chunks[0] = nil; len(q.chunks) == 1 {
		q.chunks = nil
	} else {
		q.chunks = q.chunks[1:]
	}
	return first
}
