// Package brokerlog makes the log folder of the embedded broker (franz-go's kfake) whole again after a SIGKILL.
//
// kfake ends a transaction in one uninterrupted step: it writes the marker to each partition, then the offsets to
// groups.log, then the end to pids.log, and answers nobody in between. A SIGKILL may fall anywhere into it, and into
// the writing of a transaction's records. kfake by itself hides records without a marker for as long as it runs, but
// writes no marker: a log then ends in offsets that a read committed reader never sees, and the producer's next marker
// decides about the old records too.
//
// Mend, run before kfake opens the folder, promises that each transaction is afterwards committed in all its
// partitions with its offsets, or aborted in all without them, and that each log ends in something readers see. A
// transaction whose end is not in pids.log is aborted: nobody was told that it was committed, nor can anyone have read
// it. Records that were acknowledged outside transactions are never touched. Mend may be killed, and run again.
//
// What it must not do: run while a broker has the folder open, or know what the records mean.
package brokerlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Report says what was torn.
type Report struct {
	// Transactions were aborted; of them HalfCommitted had been committed in some partitions and not in all.
	Transactions, HalfCommitted int
	// Markers were written, and Offsets of groups taken back.
	Markers, Offsets int
	// CutBytes of records and log entries were written in part only.
	CutBytes int64
}

// Whole tells that nothing was torn.
func (r Report) Whole() bool { return r == Report{} }

// transaction is one of a producer: since KIP-890 each has its own epoch.
type transaction struct {
	producer int64
	epoch    int16
}

// Mend makes the log in dir whole; a folder that is not there is.
func Mend(dir string) (r Report, err error) {
	producers, err := readProducers(filepath.Join(dir, "pids.log"), &r)
	if err != nil {
		return r, err
	}
	parts, err := readPartitions(filepath.Join(dir, "partitions"), &r)
	if err != nil {
		return r, err
	}
	torn := map[transaction]bool{}
	half := halfCommitted(parts, producers)
	// First, because only the commit markers tell that there is something to take back.
	if err := takeBackOffsets(filepath.Join(dir, "groups.log"), parts, producers, half, &r); err != nil {
		return r, err
	}
	for _, m := range half {
		torn[m.of] = true
		r.HalfCommitted = 1
		r.Markers++
		if err := m.abort(); err != nil {
			return r, err
		}
	}
	for _, p := range parts {
		for id, batches := range p.open {
			of := transaction{id, batches[len(batches)-1].epoch}
			torn[of] = true
			r.Markers++
			if err := p.appendAbort(of, batches); err != nil {
				return r, err
			}
		}
	}
	r.Transactions = len(torn)
	return r, nil
}

// halfCommitted finds the commit markers of the one transaction whose end was cut off. The broker ends one at a time;
// should there seem to be more, the epochs are not one a transaction (a client older than KIP-890) and nothing can be
// told.
func halfCommitted(parts []*partition, producers map[int64]producer) (markers []marker) {
	for _, p := range parts {
		for id, m := range p.commits {
			known, ok := producers[id]
			if !ok || m.of.epoch <= known.ended {
				continue
			}
			if len(markers) > 0 && markers[0].of != m.of {
				return nil
			}
			markers = append(markers, m)
		}
	}
	return markers
}

// takeBackOffsets takes back those of the half committed transaction. They are written when all markers are, so where
// one is missing there are none.
func takeBackOffsets(path string, parts []*partition, producers map[int64]producer, half []marker, r *Report) (err error) {
	missing := len(half) == 0 || slices.ContainsFunc(parts, func(p *partition) bool { return p.open[half[0].of.producer] != nil })
	if missing {
		_, err = cut(path, r)
		return err
	}
	r.Offsets, err = takeBack(path, producers[half[0].of.producer].name, half[0].time, r)
	return err
}

func readPartitions(dir string, r *Report) ([]*partition, error) {
	folders, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	var parts []*partition
	for _, f := range folders {
		if !f.IsDir() {
			continue
		}
		p, err := readPartition(filepath.Join(dir, f.Name()), r)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}
