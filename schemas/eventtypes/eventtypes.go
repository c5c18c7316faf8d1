// Package eventtypes is the catalogue of public event types: one file a type in types/, with the JSON Schema (2020-12)
// of the event's data and an example of it. Schemas say what is required and allow more; they may refer to the objects
// in defs.json by "#/$defs/NAME".
//
// The schema of a type is what POST /v1/events holds data to and what GET /v1/event-types shows. A type is never
// renamed; a member that becomes required makes a new schema version.
package eventtypes

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

//go:embed types/*.json
var files embed.FS

//go:embed defs.json
var sharedDefs []byte

const dialect = "https://json-schema.org/draft/2020-12/schema"

// Type is one event type. Its JSON form is that of the API.
type Type struct {
	Name        string `json:"name"`
	Category    string `json:"category"`
	Description string `json:"description"`
	// SchemaVersion is an event's schemaVersion.
	SchemaVersion int `json:"schemaVersion"`
	// Schema is self-contained: the definitions it refers to are in it.
	Schema json.RawMessage `json:"schema"`
	// Example is data that the schema accepts.
	Example    json.RawMessage `json:"example"`
	Deprecated bool            `json:"deprecated"`
	// Derived types are made by the processor alone; POST /v1/events refuses them.
	Derived bool `json:"derived"`
}

// Catalogue is every type, by name. It is safe for concurrent use.
type Catalogue struct {
	types   []Type
	schemas map[string]*jsonschema.Schema
}

// Load reads the embedded catalogue and compiles its schemas.
func Load() (*Catalogue, error) {
	var defs map[string]json.RawMessage
	if err := json.Unmarshal(sharedDefs, &defs); err != nil {
		return nil, fmt.Errorf("event types: defs.json: %w", err)
	}
	names, err := fs.Glob(files, "types/*.json")
	if err != nil {
		return nil, fmt.Errorf("event types: %w", err)
	}
	c := &Catalogue{schemas: map[string]*jsonschema.Schema{}}
	for _, file := range names {
		t, schema, err := load(file, defs)
		if err != nil {
			return nil, fmt.Errorf("event types: %s: %w", file, err)
		}
		c.types = append(c.types, t)
		c.schemas[t.Name] = schema
	}
	slices.SortFunc(c.types, func(a, b Type) int { return strings.Compare(a.Name, b.Name) })
	return c, nil
}

func load(file string, defs map[string]json.RawMessage) (t Type, schema *jsonschema.Schema, err error) {
	content, err := files.ReadFile(file)
	if err != nil {
		return t, nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&t); err != nil {
		return t, nil, err
	}
	if t.Name+".json" != path.Base(file) {
		return t, nil, fmt.Errorf("is named %q inside", t.Name)
	}
	if t.Schema, err = bundle(t.Schema, defs); err != nil {
		return t, nil, err
	}
	schema, err = compile(t.Name, t.Schema)
	return t, schema, err
}

// bundle adds the dialect and the definitions that a schema refers to, and those that they do.
func bundle(schema json.RawMessage, defs map[string]json.RawMessage) (json.RawMessage, error) {
	used := map[string]json.RawMessage{}
	if err := collect(schema, defs, used); err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(schema, &members); err != nil {
		return nil, err
	}
	members["$schema"] = json.RawMessage(`"` + dialect + `"`)
	if len(used) > 0 {
		encoded, err := json.Marshal(used)
		if err != nil {
			return nil, err
		}
		members["$defs"] = encoded
	}
	return json.Marshal(members)
}

func collect(schema json.RawMessage, defs, used map[string]json.RawMessage) error {
	for name, def := range defs {
		if _, known := used[name]; known || !bytes.Contains(schema, []byte(`"#/$defs/`+name+`"`)) {
			continue
		}
		used[name] = def
		if err := collect(def, defs, used); err != nil {
			return err
		}
	}
	return nil
}

func compile(name string, schema json.RawMessage) (*jsonschema.Schema, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	location := "/event-types/" + name
	if err := compiler.AddResource(location, document); err != nil {
		return nil, err
	}
	return compiler.Compile(location)
}

// All are the types in the order of their names. The slice must not be changed.
func (c *Catalogue) All() []Type { return c.types }

// Lookup finds a type.
func (c *Catalogue) Lookup(name string) (Type, bool) {
	at, ok := slices.BinarySearchFunc(c.types, name, func(t Type, name string) int { return strings.Compare(t.Name, name) })
	if !ok {
		return Type{}, false
	}
	return c.types[at], true
}

// ErrUnknown says that the catalogue has no such type.
var ErrUnknown = errors.New("unknown event type")

// Violation is one place where data breaks its schema.
type Violation struct {
	// Pointer is the place (RFC 6901), relative to the data.
	Pointer string
	Detail  string
}

// Validate holds data to its type's schema and returns where it breaks it; none means valid. An error means that
// nothing could be judged: ErrUnknown, or data that is not JSON.
func (c *Catalogue) Validate(name string, data []byte) ([]Violation, error) {
	schema, ok := c.schemas[name]
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read the data of %s: %w", name, err)
	}
	err = schema.Validate(value)
	if err == nil {
		return nil, nil
	}
	failed, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return nil, fmt.Errorf("validate the data of %s: %w", name, err)
	}
	return violations(failed), nil
}

// violations are the leaves of the tree that the validator gives.
func violations(e *jsonschema.ValidationError) (all []Violation) {
	if len(e.Causes) == 0 {
		pointer := ""
		for _, token := range e.InstanceLocation {
			pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(token)
		}
		return []Violation{{Pointer: pointer, Detail: e.ErrorKind.LocalizedString(message.NewPrinter(language.English))}}
	}
	for _, cause := range e.Causes {
		all = append(all, violations(cause)...)
	}
	return all
}
