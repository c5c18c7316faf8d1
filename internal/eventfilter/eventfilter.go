// Package eventfilter compiles and runs the CEL filter of an endpoint: an expression over an event that says whether
// the endpoint wants it. Ingest compiles a filter to refuse a wrong one with its reason; fan-out compiles it once per
// version of the endpoint and runs it per event.
//
// A filter reads the members of the event as it is sent: id, type, timestamp, organizationId, source, subject,
// correlationId, causationId, schemaVersion and data, each by its own name and all in `event`. Members that are null are
// null; data has JSON's types, its numbers are doubles (comparing them with integers works). What a filter may cost is
// limited in length and in steps, so that no merchant's expression slows the others' events.
package eventfilter

import (
	"encoding/json"
	"errors"
	"fmt"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

const (
	// MaxBytes is the longest filter.
	MaxBytes = 4096
	// MaxCost bounds one evaluation in CEL's cost units: about one a step, and one per ten bytes that a string
	// function reads. A plain comparison costs 2 or 3.
	MaxCost = 50_000
)

// members are the event's members in the order they are sent.
var members = [...]string{
	"id", "type", "timestamp", "organizationId", "source", "subject", "correlationId", "causationId", "schemaVersion", "data",
}

// Compiler compiles filters. It is safe for concurrent use.
type Compiler struct {
	env *cel.Env
}

// NewCompiler prepares the environment that all filters share.
func NewCompiler() (*Compiler, error) {
	options := []cel.EnvOption{
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(MaxBytes),
		cel.Variable("event", cel.MapType(cel.StringType, cel.DynType)),
	}
	for _, name := range members {
		options = append(options, cel.Variable(name, cel.DynType))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("make the filter environment: %w", err)
	}
	return &Compiler{env: env}, nil
}

// Filter is a compiled filter, safe for concurrent use.
type Filter struct {
	program cel.Program
}

// Compile checks a filter. The error's text is for whoever wrote it.
func (c *Compiler) Compile(expression string) (*Filter, error) {
	if expression == "" {
		return nil, errors.New("a filter is not empty; null takes it away")
	}
	if len(expression) > MaxBytes {
		return nil, fmt.Errorf("a filter has at most %d bytes", MaxBytes)
	}
	ast, issues := c.env.Compile(expression)
	if issues.Err() != nil {
		return nil, fmt.Errorf("not a CEL expression over the event: %w", issues.Err())
	}
	if out := ast.OutputType(); !out.IsExactType(cel.BoolType) && !out.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("the filter gives %s, not a bool", out)
	}
	program, err := c.env.Program(ast, cel.CostLimit(MaxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("not a filter that can run: %w", err)
	}
	return &Filter{program: program}, nil
}

// Event is an event's members as filters see them, decoded once for all filters that look at it.
type Event struct {
	vars map[string]any
}

// Decode takes the body of an event as it is sent.
func Decode(body []byte) (Event, error) {
	var vars map[string]any
	if err := json.Unmarshal(body, &vars); err != nil {
		return Event{}, fmt.Errorf("decode the event for its filters: %w", err)
	}
	event := make(map[string]any, len(members))
	for _, name := range members {
		event[name] = vars[name]
	}
	vars = make(map[string]any, len(members)+1)
	for name, value := range event {
		vars[name] = value
	}
	vars["event"] = event
	return Event{vars: vars}, nil
}

// Match runs the filter. An error (a member that is missing, a limit passed, a result that is no bool) means that the
// filter cannot say; the caller treats it as no match.
func (f *Filter) Match(e Event) (bool, error) {
	out, _, err := f.program.Eval(e.vars)
	if err != nil {
		return false, fmt.Errorf("run the filter: %w", err)
	}
	match, ok := out.(types.Bool)
	if !ok {
		return false, fmt.Errorf("run the filter: it gave %s, not a bool", out.Type().TypeName())
	}
	return bool(match), nil
}
