package measure

import (
	"context"

	"github.com/betterdata/webhooks/internal/testenv"
)

// Kafka is the cluster that a bench runs on: the one at the given brokers, or, where none are given, an Apache Kafka of its
// own until stop is called. where says which, for the bench's first line.
func Kafka(ctx context.Context, given string) (brokers, where string, stop func(), err error) {
	if given != "" {
		return given, "Kafka at " + given, func() {}, nil
	}
	cluster, err := testenv.StartKafka(ctx, 1, "-Xmx1g", "-Xms1g")
	if err != nil {
		return "", "", nil, err
	}
	return cluster.Addrs()[0], "Apache Kafka in a process of its own", cluster.Close, nil
}
