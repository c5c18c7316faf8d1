package replay

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Tx is what replays need of a transaction; *stream.Tx is one.
type Tx interface {
	Get(store string, key []byte) (value []byte, ok bool, err error)
	Put(store string, key, value []byte)
	Delete(store string, key []byte)
	ScanIndex(store string, prefix, from []byte, fn func(indexKey []byte) bool) error
	DropIndex(store string, indexKey []byte)
}

// Store is the state store of replays, which is the public table, too.
func Store() stream.StoreSpec { return stream.StoreSpec{Topic: schemas.Replays, Index: indexOf} }

// Prefixes of the index: all replays by endpoint, and those that are open.
const (
	byEndpoint = "e/"
	open       = "o/"
)

// indexOf derives e/<endpoint>\0<key>, and o/<key> of what is open. Ids of replays sort by time.
func indexOf(key, value []byte, put func(indexKey []byte)) {
	var r webhooksv1.Replay
	if proto.Unmarshal(value, &r) != nil {
		return
	}
	put(append(endpointPrefix(r.GetEndpointId()), key...))
	if Open(&r) {
		put(openKey(key))
	}
}

func endpointPrefix(endpoint string) []byte { return []byte(byEndpoint + endpoint + "\x00") }
func openKey(key []byte) []byte             { return append([]byte(open), key...) }

// Put writes a replay.
func Put(tx Tx, r *webhooksv1.Replay) error {
	value, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode replay %s: %w", r.GetId(), err)
	}
	key := schemas.ReplayKey(r.GetOrganizationId(), r.GetId())
	tx.Put(schemas.Replays, key, value)
	if !Open(r) {
		tx.DropIndex(schemas.Replays, openKey(key))
	}
	return nil
}

// Get reads a replay; nil when there is none.
func Get(tx Tx, organization, replay string) (*webhooksv1.Replay, error) {
	return get(tx, schemas.ReplayKey(organization, replay))
}

func get(tx Tx, key []byte) (*webhooksv1.Replay, error) {
	value, ok, err := tx.Get(schemas.Replays, key)
	if err != nil || !ok {
		return nil, err
	}
	r := new(webhooksv1.Replay)
	if err := proto.Unmarshal(value, r); err != nil {
		return nil, fmt.Errorf("decode replay %s: %w", key, err)
	}
	return r, nil
}

// EachOpen calls fn for the replays that have something left to do. Entries that hold no more are dropped.
func EachOpen(tx Tx, fn func(*webhooksv1.Replay)) error {
	return each(tx, []byte(open), func(key string, r *webhooksv1.Replay) {
		if r == nil || !Open(r) {
			tx.DropIndex(schemas.Replays, openKey([]byte(key)))
			return
		}
		fn(r)
	})
}

// each reads what the index has under a prefix; a replay that is gone is nil.
func each(tx Tx, prefix []byte, fn func(key string, r *webhooksv1.Replay)) error {
	var keys []string
	if err := tx.ScanIndex(schemas.Replays, prefix, nil, func(indexKey []byte) bool {
		keys = append(keys, string(indexKey[len(prefix):]))
		return true
	}); err != nil {
		return fmt.Errorf("find replays: %w", err)
	}
	for _, key := range keys {
		r, err := get(tx, []byte(key))
		if err != nil {
			return err
		}
		fn(key, r)
	}
	return nil
}

// Begin writes a new replay and forgets the oldest of the endpoint's that have ended, beyond keepEnded. ok is false when
// too many are active.
func Begin(tx Tx, r *webhooksv1.Replay) (ok bool, err error) {
	prefix := endpointPrefix(r.GetEndpointId())
	active := 0
	var ended []string
	if err := each(tx, prefix, func(key string, other *webhooksv1.Replay) {
		switch {
		case other == nil:
			tx.DropIndex(schemas.Replays, append(prefix, key...))
		case Active(other):
			active++
		case !Open(other):
			ended = append(ended, key)
		}
	}); err != nil {
		return false, err
	}
	if active >= MaxActive {
		return false, nil
	}
	for len(ended) > keepEnded {
		tx.Delete(schemas.Replays, []byte(ended[0]))
		tx.DropIndex(schemas.Replays, append(prefix, ended[0]...))
		ended = ended[1:]
	}
	return true, Put(tx, r)
}
