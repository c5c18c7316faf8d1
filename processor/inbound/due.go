package inbound

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
)

// The store `billing` is indexed by when an organization's next timer is due: `due/` ‖ 8 bytes of milliseconds since
// the epoch ‖ `/` ‖ organization.
const duePrefix = "due/"

const dueHead = len(duePrefix) + 8 + 1

// dueField is the number of BillingRecord.due_unix_ms.
const dueField = protowire.Number(11)

func indexDue(key, value []byte, put func(indexKey []byte)) {
	due := dueOf(value)
	if due == 0 {
		return
	}
	indexKey := append(make([]byte, 0, dueHead+len(key)), duePrefix...)
	indexKey = binary.BigEndian.AppendUint64(indexKey, uint64(due))
	indexKey = append(indexKey, '/')
	put(append(indexKey, key...))
}

// dueOf reads the one field that the index needs: a restore passes every record through it.
func dueOf(record []byte) int64 {
	for len(record) > 0 {
		number, wireType, n := protowire.ConsumeTag(record)
		if n < 0 {
			return 0
		}
		record = record[n:]
		if number == dueField && wireType == protowire.VarintType {
			due, n := protowire.ConsumeVarint(record)
			if n < 0 {
				return 0
			}
			return int64(due)
		}
		if n = protowire.ConsumeFieldValue(number, wireType, record); n < 0 {
			return 0
		}
		record = record[n:]
	}
	return 0
}

// timer is one entry of the index.
type timer struct {
	indexKey     []byte
	due          int64
	organization string
}

// timers lists the first timers, at most limit, that are due at now; next is the due time of the first that is not, 0
// when there is none.
func timers(tx *stream.Tx, now int64, limit int) (list []timer, next int64, err error) {
	err = tx.ScanIndex(schemas.Billing, []byte(duePrefix), nil, func(indexKey []byte) bool {
		if len(indexKey) <= dueHead {
			return true
		}
		due := int64(binary.BigEndian.Uint64(indexKey[len(duePrefix):]))
		if due > now || len(list) == limit {
			next = due
			return false
		}
		list = append(list, timer{
			indexKey:     append([]byte(nil), indexKey...),
			due:          due,
			organization: string(indexKey[dueHead:]),
		})
		return true
	})
	return list, next, err
}
