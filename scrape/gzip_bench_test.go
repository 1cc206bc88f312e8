package scrape

import (
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"
)

// benchText returns so many lines.
func benchText(lines int) (text []byte) {
	for i := range lines {
		text = fmt.Appendf(text, "agent_process_resource_usage{agent_name=\"main\",kind=\"%c\",template_name=\"kubernetes-dev\",username=\"developer-%05d\",workspace_name=\"workspace-%05d-main\"} %v\n",
			'a'+i%3, i/3, i/3, float64(i*7919%100003)/float64(1+i%4))
	}
	return text
}

// BenchmarkGzipLevels compresses 20,000 lines. std-6 is what promhttp does.
func BenchmarkGzipLevels(b *testing.B) {
	text := benchText(20_000)
	levels := map[string]func(io.Writer) io.WriteCloser{
		"std-6": func(w io.Writer) io.WriteCloser { return stdgzip.NewWriter(w) },
	}
	for level := 1; level <= 6; level++ {
		levels[fmt.Sprint("level-", level)] = func(w io.Writer) io.WriteCloser {
			z, err := gzip.NewWriterLevel(w, level)
			require.NoError(b, err)
			return z
		}
	}
	for name, newWriter := range levels {
		b.Run(name, func(b *testing.B) {
			out := &scrapeWriter{w: io.Discard}
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				out.n = 0
				z := newWriter(out)
				_, err := z.Write(text)
				require.NoError(b, err)
				require.NoError(b, z.Close())
			}
			b.ReportMetric(float64(len(text))/float64(out.n), "x-smaller")
		})
	}
}
