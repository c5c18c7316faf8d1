package brokerlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
)

// entry is one of kfake's journals (pids.log, groups.log): 4 bytes length of the rest after the checksum, 4 bytes
// CRC-32C, 2 bytes version, JSON; little endian.
type entry struct {
	at int64
	// Of both.
	Type string `json:"type"`
	// Of pids.log.
	Producer int64 `json:"pid"`
	Epoch    int16 `json:"epoch"`
	Commit   *bool `json:"commit"`
	// Of groups.log: when an offset was committed, Unix ms.
	Committed int64 `json:"lc"`
}

// cut reads a journal and cuts off an entry that was written in part: kfake skips it, appends after it, and would see
// none of what is appended at its next start.
func cut(path string, r *Report) ([]entry, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	var entries []entry
	at := int64(0)
	for rest := raw; len(rest) >= 10; rest = raw[at:] {
		size := int64(binary.LittleEndian.Uint32(rest)) + 8
		if size < 10 || size > int64(len(rest)) ||
			crc32.Checksum(rest[8:size], castagnoli) != binary.LittleEndian.Uint32(rest[4:]) {
			break
		}
		e := entry{at: at}
		// One that is of no known form is not ours to judge; its length is right.
		_ = json.Unmarshal(rest[10:size], &e)
		entries = append(entries, e)
		at += size
	}
	if lost := int64(len(raw)) - at; lost > 0 {
		r.CutBytes += lost
		if err := os.Truncate(path, at); err != nil {
			return nil, fmt.Errorf("cut torn entry: %w", err)
		}
	}
	return entries, nil
}

// readProducers returns the last epoch of each producer whose transaction has ended, or never began.
func readProducers(path string, r *Report) (map[int64]int16, error) {
	entries, err := cut(path, r)
	ended := make(map[int64]int16)
	for _, e := range entries {
		switch {
		case e.Type == "endtx", e.Type == "init" && e.Commit != nil:
			// The second is kfake's summary of an older journal: whether one is under way is not said.
			ended[e.Producer] = e.Epoch
		case e.Type == "init", e.Type == "timeout":
			ended[e.Producer] = e.Epoch - 1
		}
	}
	return ended, err
}

// takeBack removes the offsets that were committed at the end of the journal since a time; the end of a transaction
// runs alone, so they are its own.
func takeBack(path string, since int64) (int, error) {
	entries, err := cut(path, &Report{})
	n := 0
	for n < len(entries) {
		if e := entries[len(entries)-1-n]; e.Type != "commit" || e.Committed < since {
			break
		}
		n++
	}
	if err != nil || n == 0 {
		return 0, err
	}
	if err := os.Truncate(path, entries[len(entries)-n].at); err != nil {
		return 0, fmt.Errorf("take back offsets of a torn transaction: %w", err)
	}
	return n, nil
}
