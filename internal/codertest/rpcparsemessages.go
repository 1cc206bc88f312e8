package codertest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
)

// say adds a line, once it is known who says it.
func (p *parser) say(line string) {
	if p.agentID == uuid.Nil {
		p.pending = append(p.pending, line)
		return
	}
	p.lines = append(p.lines, line)
}

func (p *parser) manifest(data []byte) error {
	var id, workspace uuid.UUID
	var agent, owner, name string
	var apps strings.Builder
	n := 0
	regions := map[int64]string{}
	hasMap := false
	err := fieldsOf(data, func(number protowire.Number, v value) error {
		switch {
		case v.wire != protowire.BytesType:
		case number == 1:
			id, _ = uuid.FromBytes(v.bytes)
		case number == 14:
			workspace, _ = uuid.FromBytes(v.bytes)
		case number == 13:
			owner = string(v.bytes)
		case number == 15:
			agent = string(v.bytes)
		case number == 16:
			name = string(v.bytes)
		case number == 9:
			hasMap = true
			return regionsOf(v.bytes, regions)
		case number == 11:
			var app uuid.UUID
			var health int32
			if err := fieldsOf(v.bytes, func(number protowire.Number, v value) error {
				if number == 1 && v.wire == protowire.BytesType {
					app, _ = uuid.FromBytes(v.bytes)
				}
				if number == 12 && v.wire == protowire.VarintType {
					health = int32(v.number)
				}
				return nil
			}); err != nil {
				return err
			}
			if app != uuid.Nil && n < 256 {
				n++
				fmt.Fprintf(&apps, " %s=%d", app, health)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if hasMap {
		p.sayRegions(regions)
	}
	switch {
	case id == uuid.Nil:
		return errors.New("no id")
	case p.agentID == uuid.Nil:
	case p.agentID != id:
		return errors.New("another agent")
	default:
		return nil
	}
	p.agentID = id
	p.lines = append(p.lines, fmt.Sprintf("manifest %s %s %q %q %q%s", id, workspace, agent, owner, name, apps.String()))
	if p.regions != "" {
		p.lines = append(p.lines, p.regions)
	}
	p.lines = append(p.lines, p.pending...)
	return nil
}

func (p *parser) derpMap(data []byte) error {
	regions := map[int64]string{}
	if err := regionsOf(data, regions); err != nil {
		return err
	}
	if len(regions) > 0 {
		p.sayRegions(regions)
	}
	return nil
}

// sayRegions adds the line of regions, once it is known who has them. Of several before that
// it is the last.
func (p *parser) sayRegions(regions map[int64]string) {
	line := fmt.Sprintf("regions %v", regions)
	if p.agentID == uuid.Nil {
		p.regions = line
		return
	}
	p.lines = append(p.lines, line)
}

func regionsOf(data []byte, regions map[int64]string) error {
	return fieldsOf(data, func(number protowire.Number, v value) error {
		if number != 2 || v.wire != protowire.BytesType {
			return nil
		}
		var id int64
		var name string
		if err := fieldsOf(v.bytes, func(number protowire.Number, v value) error {
			if number == 1 && v.wire == protowire.VarintType {
				id = int64(v.number)
			}
			if number == 2 && v.wire == protowire.BytesType {
				return fieldsOf(v.bytes, func(number protowire.Number, v value) error {
					if number == 4 && v.wire == protowire.BytesType {
						name = string(v.bytes)
					}
					return nil
				})
			}
			return nil
		}); err != nil {
			return err
		}
		if len(regions) < 128 {
			regions[id] = name
		}
		return nil
	})
}

type value struct {
	wire   protowire.Type
	number uint64
	bytes  []byte
}

// fieldsOf calls f with each field of a message that has no groups.
func fieldsOf(b []byte, f func(protowire.Number, value) error) error {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		v := value{wire: wire}
		size := 0
		switch rest := b[n:]; wire {
		case protowire.VarintType:
			v.number, size = protowire.ConsumeVarint(rest)
		case protowire.Fixed64Type:
			v.number, size = protowire.ConsumeFixed64(rest)
		case protowire.Fixed32Type:
			_, size = protowire.ConsumeFixed32(rest)
		case protowire.BytesType:
			v.bytes, size = protowire.ConsumeBytes(rest)
		default:
			return errors.New("a group")
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[n+size:]
		if err := f(number, v); err != nil {
			return err
		}
	}
	return nil
}
