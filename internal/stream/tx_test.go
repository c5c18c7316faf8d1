package stream

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/store"
)

// idle is a task that does nothing.
type idle struct{}

func (idle) Process(*Tx, *kgo.Record) error { return nil }
func (idle) Advance(*Tx, time.Time) error   { return nil }
func (idle) Settled(bool)                   {}
func (idle) Full() bool                     { return false }
func (idle) Close()                         {}
func (idle) Drain(context.Context)          {}

func newTestOwned(t rapid.TB, db *store.DB, spec *Spec) *owned {
	st, err := db.Acquire(0, spec.topics())
	require.NoError(t, err)
	o := newOwned(context.Background(), spec, 0, 4, st, position{}, nil, func() {})
	o.task = idle{}
	o.begin(time.Unix(0, 0))
	return o
}

// The index of a record is its value, then its key.
func valueIndex(key, value []byte, put func([]byte)) { put([]byte(string(value) + "/" + string(key))) }

func TestATransactionSeesItsOwnWrites(t *testing.T) {
	spec := &Spec{Stores: []StoreSpec{{Topic: "s", Index: valueIndex}}}
	rapid.Check(t, func(t *rapid.T) {
		db, err := store.OpenMemory()
		require.NoError(t, err)
		defer func() { require.NoError(t, db.Close()) }()
		o := newTestOwned(t, db, spec)
		tx := o.tx
		data, index := map[string]string{}, map[string]bool{}
		savedData, savedIndex := maps.Clone(data), maps.Clone(index)
		key := rapid.StringMatching(`[ab]{0,3}`)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			k := key.Draw(t, "key")
			switch rapid.IntRange(0, 8).Draw(t, "step") {
			case 0, 1, 2:
				v := rapid.StringMatching(`[xy]{0,2}`).Draw(t, "value")
				tx.Put("s", []byte(k), []byte(v))
				data[k], index[v+"/"+k] = v, true
			case 3:
				tx.Delete("s", []byte(k))
				delete(data, k)
			case 4:
				if all := slices.Sorted(maps.Keys(index)); len(all) > 0 {
					drop := rapid.SampledFrom(all).Draw(t, "drop")
					tx.DropIndex("s", []byte(drop))
					delete(index, drop)
				}
			case 5:
				require.NoError(t, o.apply(make([]store.Position, 1)))
				o.settle(true)
				o.begin(time.Unix(0, 0))
				savedData, savedIndex = maps.Clone(data), maps.Clone(index)
			case 6:
				o.settle(false)
				o.begin(time.Unix(0, 0))
				data, index = maps.Clone(savedData), maps.Clone(savedIndex)
			case 7:
				requireScans(t, tx, data, index, k, key.Draw(t, "from"))
			case 8:
				var ahead [][]byte
				for _, k := range rapid.SliceOf(key).Draw(t, "ahead") {
					ahead = append(ahead, []byte(k))
				}
				require.NoError(t, tx.prefetch(0, ahead))
			}
			value, ok, err := tx.Get("s", []byte(k))
			require.NoError(t, err)
			want, has := data[k]
			require.Equal(t, has, ok)
			require.Equal(t, want, string(value))
		}
		requireScans(t, tx, data, index, "", "")
	})
}

func requireScans(t *rapid.T, tx *Tx, data map[string]string, index map[string]bool, prefix, from string) {
	within := func(keys []string) []string {
		return slices.DeleteFunc(keys, func(k string) bool { return !strings.HasPrefix(k, prefix) || k < from })
	}
	got := []string{}
	require.NoError(t, tx.Scan("s", []byte(prefix), []byte(from), func(k, v []byte) bool {
		require.Equal(t, data[string(k)], string(v))
		got = append(got, string(k))
		return true
	}))
	require.ElementsMatch(t, within(slices.Sorted(maps.Keys(data))), got)
	require.True(t, slices.IsSorted(got))
	got = []string{}
	require.NoError(t, tx.ScanIndex("s", []byte(prefix), []byte(from), func(k []byte) bool {
		got = append(got, string(k))
		return true
	}))
	require.ElementsMatch(t, within(slices.Sorted(maps.Keys(index))), got)
	require.True(t, slices.IsSorted(got))
}

func TestWrongUseIsAnErrorThatSaysSo(t *testing.T) {
	large := make([]byte, MaxOutput+1)
	for name, test := range map[string]struct {
		use  func(*Tx)
		want string
	}{
		"unknown store":     {func(tx *Tx) { tx.Put("other", nil, nil) }, `no store "other"`},
		"a state too large": {func(tx *Tx) { tx.Put("s", nil, large) }, "check stream.Fits"},
		"output too large":  {func(tx *Tx) { tx.Emit("t", "k", &kgo.Record{Value: large}) }, "check stream.Fits"},
		"Track in Advance":  {func(tx *Tx) { tx.Track(1) }, "outside of Process"},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := store.OpenMemory()
			require.NoError(t, err)
			defer func() { require.NoError(t, db.Close()) }()
			o := newTestOwned(t, db, &Spec{Group: "g", Stores: []StoreSpec{{Topic: "s"}}})
			test.use(o.tx)
			require.ErrorContains(t, o.advance(time.Now()), test.want)
		})
	}
	require.True(t, Fits(&kgo.Record{Value: large[:MaxOutput-100]}))
	require.False(t, Fits(&kgo.Record{Value: large}))
}

func TestAnEmptyValueIsNoTombstone(t *testing.T) {
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	o := newTestOwned(t, db, &Spec{Stores: []StoreSpec{{Topic: "s"}}})
	o.tx.Put("s", []byte("empty"), nil)
	o.tx.Delete("s", []byte("gone"))
	out := o.produced()
	require.NotNil(t, out[0].Record.Value)
	require.Nil(t, out[1].Record.Value)
}

func TestSpecIsChecked(t *testing.T) {
	make := func(*Partition) (Task, error) { return idle{}, nil }
	for name, test := range map[string]struct {
		spec Spec
		want string
	}{
		"no group":  {Spec{Input: "i", NewTask: make}, "Group and Input"},
		"no task":   {Spec{Group: "g", Input: "i"}, "NewTask"},
		"too wide":  {Spec{Group: "g", Input: "i", NewTask: make, Window: MaxWindow + 1}, "0 to 16384"},
		"no folder": {Spec{Group: "g", Input: "i", NewTask: make}, "StateDir"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(test.spec, Config{}, testLog(t), nil)
			require.ErrorContains(t, err, test.want)
		})
	}
}
