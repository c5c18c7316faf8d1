package billing

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// TestContentIsAllButVersionTimeAndCause changes each field there is, so that one that comes later is not forgotten.
func TestContentIsAllButVersionTimeAndCause(t *testing.T) {
	none := contentOf(&webhooksv1.TenantCapabilitySnapshot{})
	seen := map[uint64]protoreflect.Name{none: "nothing"}
	fields := (&webhooksv1.TenantCapabilitySnapshot{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		s := &webhooksv1.TenantCapabilitySnapshot{}
		field := fields.Get(i)
		fill(s.ProtoReflect(), field)
		content := contentOf(s)
		switch field.Name() {
		case "version", "computed_unix_ms", "cause":
			require.Equal(t, none, content, field.Name())
		default:
			require.Empty(t, seen[content], "%s is not told from %s", field.Name(), seen[content])
			seen[content] = field.Name()
		}
	}
}

// fill gives a field a value that is not its default.
func fill(m protoreflect.Message, field protoreflect.FieldDescriptor) {
	switch {
	case field.IsMap():
		m.Mutable(field).Map().Set(protoreflect.ValueOf("a").MapKey(), protoreflect.ValueOf(int64(1)))
	case field.IsList():
		m.Mutable(field).List().Append(protoreflect.ValueOf("a"))
	case field.Kind() == protoreflect.StringKind:
		m.Set(field, protoreflect.ValueOf("a"))
	case field.Kind() == protoreflect.Uint32Kind:
		m.Set(field, protoreflect.ValueOf(uint32(1)))
	case field.Kind() == protoreflect.Uint64Kind:
		m.Set(field, protoreflect.ValueOf(uint64(1)))
	case field.Kind() == protoreflect.Int64Kind:
		m.Set(field, protoreflect.ValueOf(int64(1)))
	default:
		m.Mutable(field)
	}
}
