package dedupe

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFilterForgetsNothingAndIsSeldomWrong(t *testing.T) {
	var f filter
	const n = 200_000
	key := func(i int) Key { return KeyOf("stripe", "cus_1", fmt.Sprint(i)) }
	wrong := 0
	for i := range n {
		if f.has(key(i)) {
			wrong++
		}
		f.add(key(i))
	}
	for i := range n {
		require.True(t, f.has(key(i)))
	}
	bytes := 0
	for _, l := range f.layers {
		bytes += 32 * len(l.blocks)
	}
	require.Less(t, 8*bytes, 2*13*n, "at most twice what its keys need, just after it has grown")
	require.Less(t, wrong, n/40)
	t.Logf("%d of %d new keys were taken for old ones; %.1f bits a key", wrong, n, 8*float64(bytes)/n)
}

func BenchmarkFilter(b *testing.B) {
	var f filter
	keys := make([]Key, 1<<20)
	for i := range keys {
		keys[i] = KeyOf("stripe", "cus_1", fmt.Sprint(i))
		f.add(keys[i])
	}
	other := make([]Key, 1<<16)
	for i := range other {
		other[i] = KeyOf("stripe", "cus_2", fmt.Sprint("other ", i))
	}
	for i := 0; b.Loop(); i++ {
		f.has(other[i%len(other)])
	}
}
