package relaying

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/decoded"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxDecoded bounds what a request may take once it is decoded: as much as of the largest one
// of an agent's own stream.
const maxDecoded = 8 << 20

// content is the field of a request that is relayed, and what its messages take in memory.
type content struct {
	field     protowire.Number
	estimator *decoded.Estimator
}

var contents = map[string]content{
	decode.CallStats:      contentOf(1, &agentstatsv1.Stats{}),
	decode.CallLifecycle:  contentOf(1, &agentstatsv1.Lifecycle{}),
	decode.CallAppHealths: contentOf(1, &agentstatsv1.AppHealthUpdate{}),
	decode.CallMetadata:   contentOf(2, &agentstatsv1.Metadata{}),
}

func contentOf(field protowire.Number, m proto.Message) content {
	return content{field, decoded.New(m)}
}

// fits returns an error if a request would take too much memory once it is decoded. What does
// not decode fits: it is refused when that is tried.
func fits(call string, request []byte) error {
	c, sum := contents[call], 0
	for len(request) > 0 {
		number, wire, size := protowire.ConsumeTag(request)
		if size < 0 {
			return nil
		}
		value := request[size:]
		if size = protowire.ConsumeFieldValue(number, wire, value); size < 0 {
			return nil
		}
		request = value[size:]
		if number != c.field || wire != protowire.BytesType {
			continue
		}
		message, _ := protowire.ConsumeBytes(value)
		n, err := c.estimator.Bytes(message, maxDecoded)
		if err != nil {
			return nil
		}
		if sum += n; sum > maxDecoded {
			return tooLarge(maxDecoded)
		}
	}
	return nil
}
