package coderdapi

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Each method says how large its messages may be, if only that the role's limit does.
func TestMessageBytesForgetNoMethod(t *testing.T) {
	desc := &agentstatsv1.CoderdService_ServiceDesc
	var methods []string
	for _, m := range desc.Methods {
		methods = append(methods, "/"+desc.ServiceName+"/"+m.MethodName)
	}
	for _, s := range desc.Streams {
		methods = append(methods, "/"+desc.ServiceName+"/"+s.StreamName)
	}
	require.ElementsMatch(t, methods, slices.Collect(maps.Keys(messageBytes)))
}
