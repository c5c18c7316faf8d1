package plans

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	lookupPrefix  = "lookup:"
	productPrefix = "prod_"
	maxTier       = 3
	// defaultGraceDays is how long past_due keeps its plan when the file does not say.
	defaultGraceDays = 7
	maxGraceDays     = 365
)

//go:embed builtin.yaml
var builtin []byte

var (
	planName      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	capabilityKey = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
)

// file is PLANS_FILE as it is written.
type file struct {
	Version     string              `yaml:"version"`
	DefaultPlan string              `yaml:"defaultPlan"`
	GraceDays   *int                `yaml:"graceDays"`
	Plans       map[string]filePlan `yaml:"plans"`
}

type filePlan struct {
	Tier            int              `yaml:"tier"`
	Match           []string         `yaml:"match"`
	Capabilities    []string         `yaml:"capabilities"`
	Limits          map[string]int64 `yaml:"limits"`
	LoopCommitments map[string]int64 `yaml:"loopCommitments"`
}

// Load reads and checks the plans file at path; "" stands for the built-in plans.
func Load(path string) (*Plans, error) {
	if path == "" {
		return Builtin(), nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read plans: %w", err)
	}
	p, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("plans file %s: %w", path, err)
	}
	return p, nil
}

// Builtin returns the plans that hold without a file.
func Builtin() *Plans {
	p, err := Parse(builtin)
	if err != nil {
		// The text is part of the program, and tested.
		panic("built-in plans: " + err.Error())
	}
	return p
}

// Parse checks a plans file. The error names everything that is wrong with it, not only the first.
func Parse(text []byte) (*Plans, error) {
	var f file
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	switch err := decoder.Decode(&f); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("is empty")
	case err != nil:
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one YAML document")
	}

	c := checker{plans: &Plans{
		Version:   f.Version,
		byName:    make(map[string]*Plan, len(f.Plans)),
		byPrice:   make(map[string]*Plan),
		byLookup:  make(map[string]*Plan),
		byProduct: make(map[string]*Plan),
	}}
	c.head(f)
	for _, name := range slices.Sorted(maps.Keys(f.Plans)) {
		c.plan(name, f.Plans[name])
	}
	c.fallback(f.DefaultPlan)
	c.capabilities()
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	return c.plans, nil
}

// checker builds plans and collects what is wrong.
type checker struct {
	plans *Plans
	errs  []error
}

func (c *checker) wrong(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *checker) head(f file) {
	if f.Version == "" {
		c.wrong("version: missing; name this state of the file")
	}
	days := defaultGraceDays
	if f.GraceDays != nil {
		days = *f.GraceDays
	}
	if days < 0 || days > maxGraceDays {
		c.wrong("graceDays: %d is not between 0 and %d", days, maxGraceDays)
	}
	c.plans.Grace = time.Duration(days) * 24 * time.Hour
}

func (c *checker) plan(name string, f filePlan) {
	if !planName.MatchString(name) {
		c.wrong("plans.%s: a plan's name is up to 64 letters, digits, _ and -", name)
	}
	if f.Tier < 0 || f.Tier > maxTier {
		c.wrong("plans.%s.tier: %d is not between 0 and %d", name, f.Tier, maxTier)
		f.Tier = 0
	}
	for _, key := range f.Capabilities {
		if !capabilityKey.MatchString(key) {
			c.wrong("plans.%s.capabilities: %q is not a key of upper-case letters, digits and _", name, key)
		}
	}
	c.counts("plans."+name+".limits", f.Limits, 0)
	c.counts("plans."+name+".loopCommitments", f.LoopCommitments, 1)
	capabilities := slices.Sorted(slices.Values(f.Capabilities))
	plan := &Plan{
		Name:            name,
		Tier:            uint32(f.Tier),
		Capabilities:    slices.Compact(capabilities),
		Limits:          f.Limits,
		LoopCommitments: f.LoopCommitments,
	}
	c.plans.byName[name] = plan
	for _, match := range f.Match {
		c.match(plan, match)
	}
}

// match adds one rule. Ids of prices are not checked further: old Stripe accounts chose their own.
func (c *checker) match(plan *Plan, match string) {
	rules, key := c.plans.byPrice, match
	if rest, ok := strings.CutPrefix(match, lookupPrefix); ok {
		rules, key = c.plans.byLookup, rest
	} else if strings.HasPrefix(match, productPrefix) {
		rules = c.plans.byProduct
	}
	switch {
	case key == "" || strings.ContainsAny(key, ": \t\r\n"):
		c.wrong("plans.%s.match: %q is not price_…, lookup:KEY or prod_…", plan.Name, match)
	case rules[key] != nil && rules[key] != plan:
		c.wrong("plans.%s.match: %q belongs to plan %s already", plan.Name, match, rules[key].Name)
	default:
		rules[key] = plan
	}
}

func (c *checker) counts(where string, counts map[string]int64, smallest int64) {
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if name == "" || counts[name] < smallest {
			c.wrong("%s.%s: %d is less than %d", where, name, counts[name], smallest)
		}
	}
}

func (c *checker) fallback(name string) {
	c.plans.Default = c.plans.byName[name]
	switch {
	case name == "":
		c.wrong("defaultPlan: missing; name the plan of an organization without a subscription")
	case c.plans.Default == nil:
		c.wrong("defaultPlan: there is no plan %q", name)
	}
}

// capabilities collects all known keys.
func (c *checker) capabilities() {
	known := slices.Clone(builtinCapabilities[:])
	for _, plan := range c.plans.byName {
		known = append(known, plan.Capabilities...)
	}
	slices.Sort(known)
	c.plans.Capabilities = slices.Compact(known)
}
