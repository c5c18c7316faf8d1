package sender

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// samples are events of one made-up customer through a subscription's life.
//
//go:embed samples/*.json
var samples embed.FS

// event is what is posted.
type event struct {
	id, eventType string
	body          []byte
}

// read makes the event of a file. A whole event that nothing is to be changed in is sent byte for byte.
func read(file string, cfg Config) (event, error) {
	text, err := open(file)
	if err != nil {
		return event{}, err
	}
	var top map[string]any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&top); err != nil {
		return event{}, fmt.Errorf("read %s: not a JSON object: %w", file, err)
	}
	whole := top["object"] == "event" || top["type"] != nil && top["data"] != nil
	if whole && cfg.Org == "" && !cfg.NewIDs {
		id, _ := top["id"].(string)
		eventType, _ := top["type"].(string)
		return event{id, eventType, text}, nil
	}
	if !whole {
		if top, err = wrap(file, top, cfg.Type); err != nil {
			return event{}, err
		}
	}
	if cfg.NewIDs {
		top["id"], top["created"] = newID(), time.Now().Unix()
	}
	if cfg.Org != "" {
		if err := setOrg(top, cfg.Org); err != nil {
			return event{}, fmt.Errorf("set the organization in %s: %w", file, err)
		}
	}
	body, err := json.MarshalIndent(top, "", "  ")
	if err != nil {
		return event{}, err
	}
	return event{fmt.Sprint(top["id"]), fmt.Sprint(top["type"]), body}, nil
}

// open reads a file, or the sample of that name.
func open(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err := samples.ReadFile("samples/" + file + ".json"); err == nil {
		return text, nil
	}
	return nil, fmt.Errorf("no file and no sample %q; samples are %s", file, strings.Join(sampleNames(), ", "))
}

func sampleNames() (names []string) {
	files, err := samples.ReadDir("samples")
	if err != nil {
		panic("BUG: the samples are embedded: " + err.Error())
	}
	for _, f := range files {
		names = append(names, strings.TrimSuffix(path.Base(f.Name()), ".json"))
	}
	return names
}

// wrap makes an event, in Stripe's envelope, of its object or of its data: {"object": {…}, "previous_attributes": {…}}.
func wrap(file string, content map[string]any, eventType string) (map[string]any, error) {
	if eventType == "" {
		eventType = typeOf(file)
	}
	if !strings.Contains(eventType, ".") {
		return nil, fmt.Errorf("%s holds an object, not an event, and its name does not say the event type: say --type", file)
	}
	data := content
	object, ok := content["object"].(map[string]any)
	if !ok {
		data, object = map[string]any{"object": content}, content
	}
	livemode, _ := object["livemode"].(bool)
	return map[string]any{
		"id": newID(), "object": "event", "api_version": "2025-03-31.basil", "created": time.Now().Unix(),
		"data": data, "livemode": livemode, "pending_webhooks": 1,
		"request": map[string]any{"id": nil, "idempotency_key": nil}, "type": eventType,
	}, nil
}

// typeOf reads the event type from a file's name: subscription.updated.object-only.json is
// customer.subscription.updated.
func typeOf(file string) string {
	name := strings.TrimSuffix(filepath.Base(file), ".json")
	name = strings.TrimSuffix(name, ".object-only")
	if strings.HasPrefix(name, "subscription.") {
		return "customer." + name
	}
	return name
}

// newID looks like Stripe's.
func newID() string { return "evt_" + rand.Text() }

func setOrg(top map[string]any, org string) error {
	data, _ := top["data"].(map[string]any)
	object, _ := data["object"].(map[string]any)
	if object == nil {
		return errors.New("the event has no data.object")
	}
	metadata, _ := object["metadata"].(map[string]any)
	if metadata == nil {
		metadata = map[string]any{}
		object["metadata"] = metadata
	}
	metadata["organizationId"] = org
	return nil
}
