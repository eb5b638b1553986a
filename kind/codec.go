package kind

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// envelopeMagic opens a stored Protobuf value: upstream's "k8s" and the style
// byte, followed by a runtime.Unknown message.
var envelopeMagic = []byte("k8s\x00")

// protoMessage is what upstream's generated types offer.
type protoMessage interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
}

// EncodeStored returns the bytes under which obj is stored: upstream's Protobuf
// envelope byte for byte, or JSON for a type that has no Protobuf form. For a
// row with Stored, obj may be of either type and the root's is written.
func EncodeStored(k *Kind, obj Object) ([]byte, error) {
	root := k.Root()
	if root != k && !k.Custom && k.is(obj) {
		var err error
		if obj, err = k.ToStored(obj); err != nil {
			return nil, fmt.Errorf("convert %s %q to %s: %w", k, obj.GetName(), root.Version, err)
		}
	}
	m, ok := obj.(protoMessage)
	if !ok || root.StoredJSON {
		var v any = obj
		if u, ok := obj.(*unstructured.Unstructured); ok {
			v = u.Object
		}
		data, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode %s %q: %w", k, obj.GetName(), err)
		}
		return data, nil
	}
	apiVersion := root.APIVersion()
	meta := 1 + varintLen(len(apiVersion)) + len(apiVersion) + 1 + varintLen(len(root.Kind)) + len(root.Kind)
	size := m.Size()
	raw := 4 + 1 + varintLen(meta) + meta + 1 + varintLen(size)
	data := make([]byte, raw+size+4)
	b := append(data[:0], envelopeMagic...)
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(meta))
	b = appendString(b, 0x0a, apiVersion)
	b = appendString(b, 0x12, root.Kind)
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(size))
	if len(b) != raw {
		return nil, fmt.Errorf("encode %s %q: envelope has %d bytes instead of %d; report this as a bug", k, obj.GetName(), len(b), raw)
	}
	n, err := m.MarshalToSizedBuffer(data[raw : raw+size])
	if err != nil {
		return nil, fmt.Errorf("encode %s %q: %w", k, obj.GetName(), err)
	}
	if n != size {
		return nil, fmt.Errorf("encode %s %q: it changed while it was encoded", k, obj.GetName())
	}
	// Content encoding and type are empty but present, as upstream writes them.
	copy(data[raw+size:], []byte{0x1a, 0, 0x22, 0})
	return data, nil
}

// DecodeStored reads a stored value of the row that k is stored as, complete
// with defaults and with apiVersion and kind set. It takes upstream's Protobuf
// envelope and JSON, also in another served version of the same kind.
func DecodeStored(k *Kind, data []byte) (Object, error) {
	root := k.Root()
	if root.Custom {
		return decodeStoredCustom(root, data)
	}
	if !bytes.HasPrefix(data, envelopeMagic) {
		return decodeStoredJSON(root, data)
	}
	apiVersion, kind, raw, err := splitEnvelope(data[len(envelopeMagic):])
	if err != nil {
		return nil, fmt.Errorf("decode stored %s: %w", root, err)
	}
	from := root
	if string(kind) != root.Kind || !root.isAPIVersion(apiVersion) {
		if from, err = twin(root, string(apiVersion), string(kind)); err != nil {
			return nil, err
		}
	}
	obj := from.New()
	m, ok := obj.(protoMessage)
	if !ok {
		return nil, fmt.Errorf("decode stored %s: the type has no protobuf form", from)
	}
	if err := m.Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("decode stored %s: %w", from, err)
	}
	shareEntries(obj)
	whole, err := complete(root, from, obj)
	if err == nil {
		Compact(whole)
	}
	return whole, err
}

// decodeStoredCustom reads an object of a custom kind as it was stored: in
// whatever version, neither pruned nor defaulted.
func decodeStoredCustom(root *Kind, data []byte) (Object, error) {
	u := new(unstructured.Unstructured)
	if err := utiljson.Unmarshal(data, &u.Object); err != nil {
		return nil, fmt.Errorf("decode stored %s: %w", root, err)
	}
	if gvk := u.GroupVersionKind(); gvk.Group != root.Group || gvk.Version == "" {
		return nil, fmt.Errorf("decode stored %s: it holds apiVersion %q", root, u.GetAPIVersion())
	}
	return u, nil
}

func decodeStoredJSON(root *Kind, data []byte) (Object, error) {
	var meta runtime.TypeMeta
	if err := json.Unmarshal(data, &meta); err != nil {
		return nil, fmt.Errorf("decode stored %s: neither protobuf envelope nor json: %w", root, err)
	}
	from := root
	if meta.Kind != root.Kind || meta.APIVersion != root.APIVersion() {
		var err error
		if from, err = twin(root, meta.APIVersion, meta.Kind); err != nil {
			return nil, err
		}
	}
	obj := from.New()
	if err := utiljson.Unmarshal(data, obj); err != nil {
		return nil, fmt.Errorf("decode stored %s: %w", from, err)
	}
	return complete(root, from, obj)
}

// complete sets apiVersion and kind, converts to root and defaults.
func complete(root, from *Kind, obj Object) (Object, error) {
	if from.Default != nil {
		from.Default(obj)
	}
	if from != root {
		converted, err := from.ToStored(obj)
		if err != nil {
			return nil, fmt.Errorf("convert stored %s %q to %s: %w", from, obj.GetName(), root.Version, err)
		}
		if obj = converted; root.Default != nil {
			root.Default(obj)
		}
	}
	obj.GetObjectKind().SetGroupVersionKind(root.GVK())
	return obj, nil
}

// twin finds the row of another version that is stored under root.
func twin(root *Kind, apiVersion, kind string) (*Kind, error) {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err == nil {
		for _, k := range All.Rows() {
			if k.Stored == root && k.GVK() == gv.WithKind(kind) {
				return k, nil
			}
		}
	}
	return nil, fmt.Errorf("decode stored %s: it holds %s %s; migrate it to %s before proa takes the store over", root, apiVersion, kind, root.APIVersion())
}

var errEnvelope = errors.New("torn protobuf envelope")

// splitEnvelope reads a runtime.Unknown without copying.
func splitEnvelope(b []byte) (apiVersion, kind, raw []byte, err error) {
	for len(b) > 0 {
		tag, value, rest, err := nextField(b)
		if err != nil {
			return nil, nil, nil, err
		}
		b = rest
		switch tag {
		case 1:
			for len(value) > 0 {
				tag, text, rest, err := nextField(value)
				if err != nil {
					return nil, nil, nil, err
				}
				switch value = rest; tag {
				case 1:
					apiVersion = text
				case 2:
					kind = text
				}
			}
		case 2:
			raw = value
		case 3, 4:
			if len(value) > 0 {
				return nil, nil, nil, fmt.Errorf("content type or encoding %q is not understood", value)
			}
		}
	}
	if raw == nil {
		return nil, nil, nil, errEnvelope
	}
	return apiVersion, kind, raw, nil
}

// nextField takes one length-delimited field off b.
func nextField(b []byte) (tag uint64, value, rest []byte, err error) {
	head, n := binary.Uvarint(b)
	if n <= 0 || head&7 != 2 {
		return 0, nil, nil, errEnvelope
	}
	size, m := binary.Uvarint(b[n:])
	if m <= 0 || size > uint64(len(b)-n-m) {
		return 0, nil, nil, errEnvelope
	}
	start := n + m
	end := start + int(size)
	return head >> 3, b[start:end:end], b[end:], nil
}

func appendString(b []byte, tag byte, s string) []byte {
	b = append(b, tag)
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func varintLen(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

// APIVersion is "v1" or "group/version".
func (k *Kind) APIVersion() string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

// isAPIVersion compares without allocating.
func (k *Kind) isAPIVersion(s []byte) bool {
	if k.Group == "" {
		return string(s) == k.Version
	}
	return len(s) == len(k.Group)+1+len(k.Version) && string(s[:len(k.Group)]) == k.Group &&
		s[len(k.Group)] == '/' && string(s[len(k.Group)+1:]) == k.Version
}
