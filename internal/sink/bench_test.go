package sink

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

type benchRow = *webhooksv1.EventRow

func benchTable() Table {
	return Plain("t", "t", func() benchRow { return &webhooksv1.EventRow{} }, func(benchRow) int64 { return 0 },
		String("event_id", benchRow.GetEventId),
		String("organization_id", benchRow.GetOrganizationId),
		String("type", benchRow.GetType),
		Time("accepted_at", benchRow.GetAcceptedUnixMs),
		UInt16("matched", benchRow.GetMatched),
		Bytes("data", benchRow.GetData),
	)
}

func alone(r rows) []rows { return []rows{r} }

// BenchmarkBatch is a row of 2 kB, from its record to the temporary table of a thousand that goes over.
func BenchmarkBatch(b *testing.B) {
	record, err := proto.Marshal(&webhooksv1.EventRow{
		EventId: "evt_01h455vb4pex5vsknk084sn02q", OrganizationId: "org_1", Type: "loop.transition.executed", AcceptedUnixMs: 1767225600000,
		Matched: 1, Data: bytes.Repeat([]byte("x"), 2000),
	})
	require.NoError(b, err)
	rows := benchTable().newRows()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rows.decode(record); err != nil {
			b.Fatal(err)
		}
		rows.append(0, 0)
		if rows.len() < 1000 {
			continue
		}
		if _, err := rows.external("batch", alone(rows)); err != nil {
			b.Fatal(err)
		}
		rows.reset()
	}
}

func TestABatchHoldsNothingOfTheOneBefore(t *testing.T) {
	rows := benchTable().newRows()
	for _, batch := range [][]string{{"a", "b", "c"}, {"d"}, {"e", "f"}} {
		for i, id := range batch {
			record, err := proto.Marshal(&webhooksv1.EventRow{EventId: id, Data: []byte("of " + id)})
			require.NoError(t, err)
			_, err = rows.decode(record)
			require.NoError(t, err)
			rows.append(7, int64(i))
		}
		table, err := rows.external("batch", alone(rows))
		require.NoError(t, err)
		columns := table.Block().Columns
		for _, c := range columns {
			require.Equal(t, len(batch), c.Rows(), c.Name())
		}
		for i, id := range batch {
			require.Equal(t, id, columns[0].Row(i, false))
			require.Equal(t, "of "+id, columns[5].Row(i, false))
			require.EqualValues(t, i, columns[7].Row(i, false))
		}
		rows.reset()
	}
}
