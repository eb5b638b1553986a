package wire

import (
	"mime"
	"strconv"
	"strings"
)

// As is a transformation that a client asked for.
type As uint8

// What an answer may be turned into.
const (
	AsIs As = iota
	AsTable
	AsPartial     // PartialObjectMetadata
	AsPartialList // PartialObjectMetadataList
)

// Choice is the outcome of negotiation.
type Choice struct {
	Format Format
	As     As
	// Beta: the table or metadata is wanted as meta.k8s.io/v1beta1.
	Beta bool
	// Discovery: as=APIGroupDiscoveryList of apidiscovery.k8s.io/v2.
	Discovery bool
	Pretty    bool
}

// MetaVersion of the meta.k8s.io kinds in the answer.
func (c Choice) MetaVersion() string {
	if c.Beta {
		return "v1beta1"
	}
	return "v1"
}

// BodyFormat is the format named by a Content-Type; none means JSON.
func BodyFormat(contentType string) (Format, bool) {
	if contentType == "" || contentType == JSONType {
		return JSON, true
	}
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return JSON, false
	}
	switch t {
	case JSONType:
		return JSON, true
	case YAMLType:
		return YAML, true
	case ProtobufType:
		return Protobuf, true
	}
	return JSON, false
}

// Negotiate picks the first acceptable clause of an Accept header, highest
// quality first. transforms says whether as=Table and as=PartialObjectMetadata
// can be had; discovery whether as=APIGroupDiscoveryList can.
func Negotiate(accept string, transforms, discovery bool) (Choice, bool) {
	switch accept {
	case "", "*/*", JSONType, "application/json, */*":
		return Choice{}, true
	case ProtobufType:
		return Choice{Format: Protobuf}, true
	}
	type clause struct {
		c Choice
		q float64
	}
	best, found := clause{}, false
	for _, part := range strings.Split(accept, ",") {
		t, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		cl := clause{q: 1}
		switch t {
		case JSONType, "*/*", "application/*":
		case YAMLType:
			cl.c.Format = YAML
		case ProtobufType:
			cl.c.Format = Protobuf
		default:
			continue
		}
		if q, ok := params["q"]; ok {
			if cl.q, err = strconv.ParseFloat(q, 64); err != nil {
				continue
			}
		}
		if params["pretty"] == "1" || params["pretty"] == "true" {
			cl.c.Pretty = true
		}
		if as := params["as"]; as != "" {
			g, v := params["g"], params["v"]
			switch {
			case as == "APIGroupDiscoveryList" && discovery && g == "apidiscovery.k8s.io" && v == "v2":
				cl.c.Discovery = true
			case !transforms || g != "meta.k8s.io" || (v != "v1" && v != "v1beta1"):
				continue
			case as == "Table":
				cl.c.As = AsTable
			case as == "PartialObjectMetadata":
				cl.c.As = AsPartial
			case as == "PartialObjectMetadataList":
				cl.c.As = AsPartialList
			default:
				continue
			}
			cl.c.Beta = v == "v1beta1"
		}
		if s, ok := params["stream"]; ok && s != "watch" {
			continue
		}
		if cl.q > 0 && (!found || cl.q > best.q) {
			best, found = cl, true
		}
	}
	return best.c, found
}
