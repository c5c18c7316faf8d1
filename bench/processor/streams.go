package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/internal/testenv"
)

// groupStreams is the application's id, and with it its group.
const groupStreams = "streams"

// job is the billing processor's work in Kafka Streams, run from source: a JDK is needed.
//
//go:embed BillingJob.java
var job []byte

func startStreams(ctx context.Context, o options) (*measure.Child, error) {
	java, err := testenv.Java(ctx, "kafka-streams-4.2.0", "org.apache.kafka:kafka-streams:4.2.0",
		"com.fasterxml.jackson.core:jackson-databind:2.19.2", "org.slf4j:slf4j-nop:1.7.36")
	if err != nil {
		return nil, err
	}
	source := filepath.Join(o.state, "BillingJob.java")
	if err := os.WriteFile(source, job, 0o600); err != nil {
		return nil, err
	}
	args := append(java[1:], "-Xmx1g", "-XX:+UseParallelGC", source, o.brokers, o.prefix, o.state, fmt.Sprint(max(o.sessions, 1)))
	return measure.Start(exec.Command(java[0], args...))
}
