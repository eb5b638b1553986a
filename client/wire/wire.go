// Package wire turns API objects into bytes and back: JSON, YAML and Protobuf
// bodies, the Protobuf envelope, watch frames, and the choice of a format from
// Accept and Content-Type headers. It knows no server state.
//
// Objects that are encoded are never changed: where a document needs kind and
// apiVersion, a shallow copy gets them.
//
// The Protobuf envelope is "k8s\x00" followed by a runtime.Unknown message
// (Kubernetes docs, "Kubernetes Protobuf encoding"): typeMeta=1, raw=2,
// contentEncoding=3, contentType=4.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Format of a body.
type Format uint8

// The formats.
const (
	JSON Format = iota
	YAML
	Protobuf
)

// Media types of the formats.
const (
	JSONType     = "application/json"
	YAMLType     = "application/yaml"
	ProtobufType = "application/vnd.kubernetes.protobuf"
)

// Accepted lists the media types of bodies, in the words of error messages.
const Accepted = JSONType + ", " + YAMLType + ", " + ProtobufType

// ContentType of a whole body in this format.
func (f Format) ContentType() string {
	switch f {
	case YAML:
		return YAMLType
	case Protobuf:
		return ProtobufType
	}
	return JSONType
}

// StreamType is the content type of a watch in this format.
func (f Format) StreamType() string {
	if f == Protobuf {
		return ProtobufType + ";stream=watch"
	}
	return JSONType
}

var magic = []byte("k8s\x00")

// Proto is what generated messages offer.
type Proto interface {
	Size() int
	Marshal() ([]byte, error)
	MarshalToSizedBuffer([]byte) (int, error)
}

type protoDecoder interface{ Unmarshal([]byte) error }

// Typed returns a shallow copy of obj with kind and apiVersion set, or obj
// itself when it has them already. An empty gvk clears them.
func Typed(obj runtime.Object, gvk schema.GroupVersionKind) runtime.Object {
	if obj.GetObjectKind().GroupVersionKind() == gvk {
		return obj
	}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		// Items of custom kinds keep theirs; the content is shared, so only the top is
		// copied.
		if gvk.Empty() {
			return obj
		}
		c := &unstructured.Unstructured{Object: maps.Clone(u.Object)}
		if c.Object == nil {
			c.Object = map[string]any{}
		}
		c.SetGroupVersionKind(gvk)
		return c
	}
	v := reflect.ValueOf(obj)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return obj
	}
	n := reflect.New(v.Type().Elem())
	n.Elem().Set(v.Elem())
	c := n.Interface().(runtime.Object)
	if gvk.Empty() {
		c.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	} else {
		c.GetObjectKind().SetGroupVersionKind(gvk)
	}
	return c
}

// Encode writes obj as gvk. indent asks for pretty JSON. JSON bodies end in a
// newline, as upstream's do.
func Encode(f Format, obj runtime.Object, gvk schema.GroupVersionKind, indent bool) ([]byte, error) {
	switch f {
	case Protobuf:
		p, ok := obj.(Proto)
		if !ok {
			return nil, fmt.Errorf("encode %T: %w", obj, ErrNoProto)
		}
		return Envelope(p, gvk)
	case YAML:
		b, err := MarshalJSON(Typed(obj, gvk))
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", gvk.Kind, err)
		}
		return yaml.JSONToYAML(b)
	}
	return encodeJSON(Typed(obj, gvk), gvk.Kind, indent)
}

// ErrNoProto: the object has no Protobuf form.
var ErrNoProto = errors.New("object does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message")

func encodeJSON(v any, what string, indent bool) ([]byte, error) {
	var b []byte
	var err error
	if indent {
		b, err = json.MarshalIndent(v, "", "  ")
	} else {
		b, err = MarshalJSON(v)
	}
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", what, err)
	}
	return append(b, '\n'), nil
}

func varintLen(n uint64) int {
	l := 1
	for n >= 0x80 {
		n >>= 7
		l++
	}
	return l
}

// EnvelopeHead is what precedes size bytes of message in the envelope.
func EnvelopeHead(gvk schema.GroupVersionKind, size int) []byte {
	apiVersion, kindName := gvk.ToAPIVersionAndKind()
	inner := 2 + len(apiVersion) + len(kindName) + varintLen(uint64(len(apiVersion))) + varintLen(uint64(len(kindName)))
	b := make([]byte, 0, len(magic)+inner+12+10)
	b = append(b, magic...)
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(inner))
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(len(apiVersion)))
	b = append(b, apiVersion...)
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(len(kindName)))
	b = append(b, kindName...)
	b = append(b, 0x12)
	return binary.AppendUvarint(b, uint64(size))
}

// EnvelopeTail follows the message: empty contentEncoding and contentType.
var EnvelopeTail = []byte{0x1a, 0, 0x22, 0}

// Envelope encodes one message in the envelope, in one allocation.
func Envelope(p Proto, gvk schema.GroupVersionKind) ([]byte, error) {
	n := p.Size()
	head := EnvelopeHead(gvk, n)
	b := make([]byte, len(head)+n+len(EnvelopeTail))
	copy(b, head)
	if _, err := p.MarshalToSizedBuffer(b[len(head) : len(head)+n]); err != nil {
		return nil, fmt.Errorf("encode %s: %w", gvk.Kind, err)
	}
	copy(b[len(head)+n:], EnvelopeTail)
	return b, nil
}

// Unwrap takes the message and its type out of an envelope.
func Unwrap(data []byte) (schema.GroupVersionKind, []byte, error) {
	if !bytes.HasPrefix(data, magic) {
		return schema.GroupVersionKind{}, nil, errors.New("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
	}
	var u runtime.Unknown
	if err := u.Unmarshal(data[len(magic):]); err != nil {
		return schema.GroupVersionKind{}, nil, err
	}
	return u.GroupVersionKind(), u.Raw, nil
}

// Decoded says what a body contained.
type Decoded struct {
	GVK    schema.GroupVersionKind // as named in the body; may be empty
	Strict []error                 // unknown and duplicate fields
}

// Decode reads data into obj. strict asks for the list of unknown and duplicate
// fields (JSON and YAML); they are reported, not refused.
func Decode(f Format, data []byte, obj runtime.Object, strict bool) (Decoded, error) {
	var d Decoded
	switch f {
	case Protobuf:
		gvk, raw, err := Unwrap(data)
		d.GVK = gvk
		if err != nil {
			return d, err
		}
		p, ok := obj.(protoDecoder)
		if !ok {
			return d, fmt.Errorf("decode %T: %w", obj, ErrNoProto)
		}
		if recursive(reflect.TypeOf(obj)) {
			if err := checkDepth(raw); err != nil {
				return d, err
			}
		}
		if err := p.Unmarshal(raw); err != nil {
			return d, err
		}
		obj.GetObjectKind().SetGroupVersionKind(gvk)
		return d, nil
	case YAML:
		var j []byte
		var err error
		if strict {
			if j, err = yaml.YAMLToJSONStrict(data); err != nil {
				if j2, err2 := yaml.YAMLToJSON(data); err2 == nil {
					d.Strict = append(d.Strict, err)
					j, err = j2, nil
				}
			}
		} else {
			j, err = yaml.YAMLToJSON(data)
		}
		if err != nil {
			return d, err
		}
		data = j
	}
	target := any(obj)
	u, isCustom := obj.(*unstructured.Unstructured)
	if isCustom {
		// Its own decoder would neither report duplicates nor take a body without kind.
		u.Object = nil
		target = &u.Object
	}
	if strict {
		errs, err := kjson.UnmarshalStrict(data, target)
		if err != nil {
			d.GVK = Sniff(data)
			return d, err
		}
		d.Strict = append(d.Strict, errs...)
	} else if err := kjson.UnmarshalCaseSensitivePreserveInts(data, target); err != nil {
		d.GVK = Sniff(data)
		return d, err
	}
	if isCustom && u.Object == nil {
		u.Object = map[string]any{}
	}
	d.GVK = obj.GetObjectKind().GroupVersionKind()
	return d, nil
}

// Sniff reads kind and apiVersion of a JSON document; empty when it has none.
func Sniff(data []byte) schema.GroupVersionKind {
	var m metav1.TypeMeta
	if json.Unmarshal(data, &m) != nil {
		return schema.GroupVersionKind{}
	}
	return m.GroupVersionKind()
}

// Frame is one watch event: a JSON document with a newline, or a Protobuf
// WatchEvent behind its length in four bytes, big-endian. object is the
// encoded object (JSON without newline, or with its envelope).
func Frame(f Format, typ string, object []byte) []byte {
	if f == Protobuf {
		inner := 1 + varintLen(uint64(len(object))) + len(object)
		n := 1 + varintLen(uint64(len(typ))) + len(typ) + 1 + varintLen(uint64(inner)) + inner
		b := make([]byte, 4, 4+n)
		binary.BigEndian.PutUint32(b, uint32(n))
		b = append(b, 0x0a)
		b = binary.AppendUvarint(b, uint64(len(typ)))
		b = append(b, typ...)
		b = append(b, 0x12)
		b = binary.AppendUvarint(b, uint64(inner))
		b = append(b, 0x0a)
		b = binary.AppendUvarint(b, uint64(len(object)))
		return append(b, object...)
	}
	object = bytes.TrimRight(object, "\n")
	b := make([]byte, 0, len(typ)+len(object)+24)
	b = append(b, `{"type":"`...)
	b = append(b, typ...)
	b = append(b, `","object":`...)
	b = append(b, object...)
	return append(b, '}', '\n')
}

// ProtoList writes a list message in its envelope piece by piece: metadata is
// field 1 and items is field 2 of every Kubernetes list. w is closed.
func ProtoList(w interface {
	Write([]byte) (int, error)
	Close() error
}, gvk schema.GroupVersionKind, meta *metav1.ListMeta, n int, item func(int) (Proto, error)) error {
	sizes := make([]int, n)
	m, err := meta.Marshal()
	if err != nil {
		return err
	}
	total := 1 + varintLen(uint64(len(m))) + len(m)
	for i := range n {
		p, err := item(i)
		if err != nil {
			return err
		}
		sizes[i] = p.Size()
		total += 1 + varintLen(uint64(sizes[i])) + sizes[i]
	}
	if _, err := w.Write(EnvelopeHead(gvk, total)); err != nil {
		return err
	}
	buf := make([]byte, 0, 64<<10)
	buf = append(buf, 0x0a)
	buf = binary.AppendUvarint(buf, uint64(len(m)))
	buf = append(buf, m...)
	for i := range n {
		if need := sizes[i] + 12; cap(buf)-len(buf) < need {
			if _, err := w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
			if cap(buf) < need {
				buf = make([]byte, 0, need)
			}
		}
		p, err := item(i)
		if err != nil {
			return err
		}
		buf = append(buf, 0x12)
		buf = binary.AppendUvarint(buf, uint64(sizes[i]))
		at := len(buf)
		buf = buf[:at+sizes[i]]
		if _, err := p.MarshalToSizedBuffer(buf[at:]); err != nil {
			return err
		}
	}
	if _, err := w.Write(append(buf, EnvelopeTail...)); err != nil {
		return err
	}
	return w.Close()
}

// Reformat turns compact JSON into YAML or pretty JSON.
func Reformat(f Format, data []byte) ([]byte, error) {
	if f == YAML {
		return yaml.JSONToYAML(data)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "  "); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
