package brokerlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Layout of kfake's segments: <base>.dat holds record batches as on the wire (KIP-98, message format 2), <base>.idx one
// entry a batch: version 1, checksum, 4 bytes epoch, 8 bytes time, flags (bit 0: in a transaction), little endian.
const (
	frameBytes   = 12 // of a batch: base offset, length of the rest
	headerBytes  = 61
	crcFrom      = 21
	indexBytes   = 15
	indexVersion = 1
	controlBatch = 0x20
	transacted   = 0x10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// partition is the end of one partition's log, and what in it is not ended.
type partition struct {
	segment string // path of the last segment, without extension
	size    int64
	count   int // batches in the last segment
	next    int64
	epoch   int32
	// open are batches of transactions without a marker, by producer.
	open map[int64][]batch
	// commits are the last commit marker of each producer.
	commits map[int64]marker
}

// batch is where a batch of a transaction has its index entry.
type batch struct {
	segment string
	i       int
	epoch   int16
	leader  int32
	time    int64
}

// marker is where a control batch stands.
type marker struct {
	of      transaction
	segment string
	at      int64
	raw     []byte
	time    int64
}

func readPartition(dir string, r *Report) (*partition, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	var bases []int64
	for _, f := range files {
		name, isData := strings.CutSuffix(f.Name(), ".dat")
		if base, err := strconv.ParseInt(name, 10, 64); isData && err == nil {
			bases = append(bases, base)
		}
	}
	slices.Sort(bases)
	p := &partition{open: map[int64][]batch{}, commits: map[int64]marker{}}
	for _, base := range bases {
		p.segment = filepath.Join(dir, strconv.FormatInt(base, 10))
		if err := p.readSegment(r); err != nil {
			return nil, fmt.Errorf("read log: %w", err)
		}
	}
	return p, nil
}

// readSegment notes what the segment leaves open, cuts off a batch that was written in part, and gives each batch its
// index entry: kfake pairs them by number, so one that is missing would shift all that come after.
func (p *partition) readSegment(r *Report) error {
	raw, err := os.ReadFile(p.segment + ".dat")
	if err != nil {
		return err
	}
	p.size, p.count = 0, 0
	var entries []byte
	for rest := raw; ; {
		b := nextBatch(rest)
		if b == nil {
			break
		}
		entries = append(entries, p.take(b)...)
		p.size += int64(len(b))
		p.count++
		rest = rest[len(b):]
	}
	if cut := int64(len(raw)) - p.size; cut > 0 {
		r.CutBytes += cut
		if err := os.Truncate(p.segment+".dat", p.size); err != nil {
			return err
		}
	}
	return p.completeIndex(entries)
}

// nextBatch is the whole, undamaged batch that raw begins with, or nil.
func nextBatch(raw []byte) []byte {
	if len(raw) < headerBytes {
		return nil
	}
	size := frameBytes + int64(int32(binary.BigEndian.Uint32(raw[8:])))
	if size < headerBytes || size > int64(len(raw)) {
		return nil
	}
	if b := raw[:size]; crc32.Checksum(b[crcFrom:], castagnoli) == binary.BigEndian.Uint32(b[17:]) {
		return b
	}
	return nil
}

// take follows one batch and returns the index entry it should have.
func (p *partition) take(raw []byte) []byte {
	attributes := binary.BigEndian.Uint16(raw[21:])
	b := batch{
		segment: p.segment, i: p.count,
		epoch:  int16(binary.BigEndian.Uint16(raw[51:])),
		leader: int32(binary.BigEndian.Uint32(raw[12:])),
		time:   int64(binary.BigEndian.Uint64(raw[35:])),
	}
	p.epoch = b.leader
	p.next = int64(binary.BigEndian.Uint64(raw)) + int64(int32(binary.BigEndian.Uint32(raw[23:]))) + 1
	producer := int64(binary.BigEndian.Uint64(raw[43:]))
	switch {
	case attributes&controlBatch != 0:
		delete(p.open, producer)
		delete(p.commits, producer)
		if isCommit(raw) {
			p.commits[producer] = marker{
				of: transaction{producer, b.epoch}, segment: p.segment, at: p.size, raw: slices.Clone(raw), time: b.time,
			}
		}
		return b.entry(false)
	case attributes&transacted != 0:
		p.open[producer] = append(p.open[producer], b)
		return b.entry(true)
	}
	return b.entry(false)
}

func (b batch) entry(inTransaction bool) []byte {
	e := make([]byte, indexBytes)
	e[0] = indexVersion
	binary.LittleEndian.PutUint32(e[2:], uint32(b.leader))
	binary.LittleEndian.PutUint64(e[6:], uint64(b.time))
	if inTransaction {
		e[14] = 1
	}
	e[1] = byte(crc32.Checksum(e[2:], castagnoli))
	return e
}

func (p *partition) completeIndex(entries []byte) error {
	path := p.segment + ".idx"
	var have int
	if info, err := os.Stat(path); err == nil {
		have = int(info.Size())
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if have == len(entries) {
		return nil
	}
	whole := min(have, len(entries)) / indexBytes * indexBytes
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(entries[whole:], int64(whole))
	return errors.Join(err, f.Truncate(int64(len(entries))), f.Close())
}

// appendAbort ends a transaction at the end of the log.
func (p *partition) appendAbort(of transaction, batches []batch) error {
	for _, b := range batches {
		if err := writeAt(b.segment+".idx", b.entry(true), int64(b.i*indexBytes)); err != nil {
			return err
		}
	}
	end := batch{segment: p.segment, i: p.count, leader: p.epoch, epoch: of.epoch, time: batches[len(batches)-1].time}
	raw := abortMarker(of, p.next, p.epoch, end.time)
	if err := writeAt(p.segment+".dat", raw, p.size); err != nil {
		return err
	}
	p.size += int64(len(raw))
	p.next++
	p.count++
	return writeAt(p.segment+".idx", end.entry(false), int64(end.i*indexBytes))
}

// abort turns a commit marker where it stands; both kinds have one length.
func (m marker) abort() error {
	var b kmsg.RecordBatch
	if err := b.ReadFrom(m.raw); err != nil {
		return fmt.Errorf("read marker in %s at %d: %w", m.segment, m.at, err)
	}
	raw := abortMarker(m.of, b.FirstOffset, b.PartitionLeaderEpoch, m.time)
	if len(raw) != len(m.raw) {
		return fmt.Errorf("marker in %s at %d has %d bytes, an abort marker %d", m.segment, m.at, len(m.raw), len(raw))
	}
	return writeAt(m.segment+".dat", raw, m.at)
}

func writeAt(path string, raw []byte, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("mend log: %w", err)
	}
	_, err = f.WriteAt(raw, at)
	return errors.Join(err, f.Close())
}

func isCommit(raw []byte) bool {
	var b kmsg.RecordBatch
	var r kmsg.Record
	var key kmsg.ControlRecordKey
	return b.ReadFrom(raw) == nil && r.ReadFrom(b.Records) == nil && key.ReadFrom(r.Key) == nil &&
		key.Type == kmsg.ControlRecordKeyTypeCommit
}

// abortMarker is the control batch that ends a transaction (KIP-98).
func abortMarker(of transaction, offset int64, leader int32, time int64) []byte {
	key := kmsg.ControlRecordKey{Type: kmsg.ControlRecordKeyTypeAbort}
	var end kmsg.EndTxnMarker
	record := kmsg.Record{Key: key.AppendTo(nil), Value: end.AppendTo(nil)}
	record.Length = int32(len(record.AppendTo(nil)) - 1) // the length itself takes one byte
	b := kmsg.RecordBatch{
		FirstOffset: offset, PartitionLeaderEpoch: leader, Magic: 2, Attributes: controlBatch | transacted,
		FirstTimestamp: time, MaxTimestamp: time,
		ProducerID: of.producer, ProducerEpoch: of.epoch, FirstSequence: -1, NumRecords: 1, Records: record.AppendTo(nil),
	}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-frameBytes))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[crcFrom:], castagnoli))
	return raw
}
