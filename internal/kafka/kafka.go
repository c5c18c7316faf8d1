// Package kafka is what every client of the log shares: how connections are made, how topics are created and their
// partition count asserted, and how a key finds its partition. It holds no business logic.
package kafka

import (
	"github.com/twmb/franz-go/pkg/kgo"
)

// Config is how to reach the cluster.
type Config struct {
	Brokers []string
	// TopicPrefix stands before every topic, group and transactional id.
	TopicPrefix string
	// Partitions of keyed topics; permanent once the topics exist.
	Partitions int32
	// ReplicationFactor of topics when they are created. 1 also says that there is one broker.
	ReplicationFactor int16
}

// Topic is the full name of a topic.
func (c Config) Topic(name string) string { return c.TopicPrefix + name }

// PartitionOf is the partition of a routing key: murmur2, as the Java client and kgo's default partitioner do it, so
// that any Kafka tool finds a key where it is. The result never changes for a key; it is bound to the partition count.
func PartitionOf(key string, partitions int32) int32 {
	return int32(partitioner(key, partitions))
}

func partitioner(key string, partitions int32) int {
	return kgo.KafkaHasher(murmur2)([]byte(key), int(partitions))
}

// murmur2 is Kafka's 32-bit hash of a key (org.apache.kafka.common.utils.Utils.murmur2).
func murmur2(b []byte) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := seed ^ uint32(len(b))
	for len(b) >= 4 {
		k := uint32(b[3])<<24 | uint32(b[2])<<16 | uint32(b[1])<<8 | uint32(b[0])
		b = b[4:]
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
