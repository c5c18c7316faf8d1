package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// mergeJSON applies a merge patch (RFC 7396) to a JSON object. Numbers keep their text.
func mergeJSON(target, patch []byte) ([]byte, error) {
	var t, p any
	if err := decodeNumbers(target, &t); err != nil {
		return nil, fmt.Errorf("decode what is merged into: %w", err)
	}
	if err := decodeNumbers(patch, &p); err != nil {
		return nil, fmt.Errorf("decode the patch: %w", err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(mergeValue(t, p)); err != nil {
		return nil, fmt.Errorf("encode what was merged: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

func decodeNumbers(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return dec.Decode(v)
}

func mergeValue(target, patch any) any {
	members, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	result, ok := target.(map[string]any)
	if !ok {
		result = make(map[string]any, len(members))
	}
	for name, value := range members {
		if value == nil {
			delete(result, name)
			continue
		}
		result[name] = mergeValue(result[name], value)
	}
	return result
}

// escapePointer writes a member's name as a reference token (RFC 6901 §3).
func escapePointer(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}
