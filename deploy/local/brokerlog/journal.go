package brokerlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strings"
)

// entry is one of kfake's journals (pids.log, groups.log): 4 bytes length of the rest after the checksum, 4 bytes
// CRC-32C, 2 bytes version, JSON; little endian.
type entry struct {
	at int64
	// Of both.
	Type string `json:"type"`
	// Of pids.log.
	Producer int64  `json:"pid"`
	Epoch    int16  `json:"epoch"`
	Commit   *bool  `json:"commit"`
	Name     string `json:"txid"`
	// Of groups.log: when an offset was committed, Unix ms.
	Committed int64  `json:"lc"`
	Group     string `json:"g"`
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

// producer is what pids.log knows of one.
type producer struct {
	name string // transactional id
	// ended is the last epoch whose transaction has ended, or never began.
	ended int16
}

func readProducers(path string, r *Report) (map[int64]producer, error) {
	entries, err := cut(path, r)
	all := make(map[int64]producer)
	for _, e := range entries {
		p := all[e.Producer]
		if e.Name != "" {
			p.name = e.Name
		}
		p.ended = e.Epoch - 1
		if e.Type == "endtx" || e.Type == "init" && e.Commit != nil {
			// The second is kfake's summary of an older journal: whether one is under way is not said.
			p.ended = e.Epoch
		}
		all[e.Producer] = p
	}
	return all, err
}

// takeBack removes the offsets that a transaction committed whose end began at a time (Unix ms). The end runs alone,
// so its offsets are the last in the journal. Those of an end before it in the same millisecond are told apart by the
// group: internal/stream names its producers after their groups; a client that does not is taken at the time alone.
func takeBack(path, name string, since int64, r *Report) (int, error) {
	entries, err := cut(path, r)
	if err != nil {
		return 0, err
	}
	named := func(e entry) bool { return e.Group != "" && (e.Group == name || strings.HasPrefix(name, e.Group+"-")) }
	foreign := !slices.ContainsFunc(entries, named)
	n := 0
	for n < len(entries) {
		e := entries[len(entries)-1-n]
		if e.Type != "commit" || e.Committed < since || !foreign && !named(e) {
			break
		}
		n++
	}
	if n == 0 {
		return 0, nil
	}
	if err := os.Truncate(path, entries[len(entries)-n].at); err != nil {
		return 0, fmt.Errorf("take back offsets of a torn transaction: %w", err)
	}
	return n, nil
}
