package routing

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// It was noted by a version that did not note beginnings.
func TestAHandOverWithoutABeginningIsWaitedForAsIfItsOwnerHadJustCome(t *testing.T) {
	value, err := proto.Marshal(&webhooksv1.AccountHolders{HandingOver: []int64{7, 9}, SinceUnixMs: []int64{1}})
	require.NoError(t, err)
	c := closed{}
	require.NoError(t, c.recall(func(fn func(key, value []byte) bool) error {
		fn([]byte(holdersPrefix+"stripe/cus_1"), value)
		return nil
	}))
	require.Equal(t, map[string]int64{"stripe/cus_1": 0}, c.since)
	c.began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	require.Equal(t, c.began.Add(handOverPatience), c.limit(c.since["stripe/cus_1"]))
}
