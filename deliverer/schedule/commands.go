package schedule

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Place is where a kept command stands: by delivery, and among a delivery's in the order they came.
type Place struct {
	Delivery string
	// Offset is that of the command's record.
	Offset int64
}

func (p Place) key() []byte {
	key := append(append([]byte(commandPrefix), p.Delivery...), '/')
	return binary.BigEndian.AppendUint64(key, orderable(p.Offset))
}

// offsetBytes end a command's key, after a slash.
const offsetBytes = 8

func parsePlace(key []byte) (Place, bool) {
	slash := len(key) - offsetBytes - 1
	if slash < len(commandPrefix) || key[slash] != '/' {
		return Place{}, false
	}
	return Place{string(key[len(commandPrefix):slash]), fromOrderable(binary.BigEndian.Uint64(key[slash+1:]))}, true
}

// PutCommand keeps a command, or changes what is kept of it.
func PutCommand(tx Tx, at Place, kept *webhooksv1.KeptCommand) error {
	value, err := proto.Marshal(kept)
	if err != nil {
		return fmt.Errorf("encode command %s: %w", kept.GetCommand().GetId(), err)
	}
	tx.Put(schemas.Retries, at.key(), value)
	return nil
}

// RemoveCommand lets go of a command that has ended.
func RemoveCommand(tx Tx, at Place) { tx.Delete(schemas.Retries, at.key()) }

// ScanCommands calls fn for all kept commands, in the order of their places.
func ScanCommands(tx Tx, fn func(Place, *webhooksv1.KeptCommand)) error {
	var failed error
	err := tx.Scan(schemas.Retries, []byte(commandPrefix), nil, func(key, value []byte) bool {
		at, ok := parsePlace(key)
		kept := new(webhooksv1.KeptCommand)
		if !ok {
			failed = fmt.Errorf("%q is no place of a command", key)
		} else if err := proto.Unmarshal(value, kept); err != nil {
			failed = fmt.Errorf("decode a command on %s: %w", at.Delivery, err)
		} else {
			fn(at, kept)
		}
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return err
}
