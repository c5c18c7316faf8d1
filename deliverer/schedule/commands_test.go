package schedule_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestKeptCommandsAreFoundInTheOrderTheyCame(t *testing.T) {
	tx := newMemory()
	places := []schedule.Place{{"dlv_1", 9}, {"dlv_1", 255}, {"dlv_1", 256}, {"dlv_1", math.MaxInt64}, {"dlv_2", 0}}
	for i := range places {
		at := places[len(places)-1-i]
		require.NoError(t, schedule.PutCommand(tx, at, &webhooksv1.KeptCommand{Command: &webhooksv1.Command{Id: at.Delivery}}))
	}
	require.NoError(t, schedule.Put(tx, "dlv_1", state("ep_1", 5, 1), nil))
	find := func() (found []schedule.Place) {
		require.NoError(t, schedule.ScanCommands(tx, func(at schedule.Place, kept *webhooksv1.KeptCommand) {
			require.Equal(t, at.Delivery, kept.GetCommand().GetId())
			found = append(found, at)
		}))
		return found
	}
	require.Equal(t, places, find())
	schedule.RemoveCommand(tx, places[1])
	require.Equal(t, append(places[:1:1], places[2:]...), find())
	require.Equal(t, []string{"dlv_1@5"}, due(t, tx, "ep_1"), "they have no place among what waits")
}

func TestAnUnreadableCommandIsAnError(t *testing.T) {
	for _, key := range []string{"c/", "c/dlv_1", "c/dlv_1/1234567"} {
		tx := newMemory()
		tx.Put(schemas.Retries, []byte(key), nil)
		require.Error(t, schedule.ScanCommands(tx, func(schedule.Place, *webhooksv1.KeptCommand) {}))
	}
	tx := newMemory()
	tx.Put(schemas.Retries, []byte("c/dlv_1/12345678"), []byte{0xff})
	require.Error(t, schedule.ScanCommands(tx, func(schedule.Place, *webhooksv1.KeptCommand) {}))
}
