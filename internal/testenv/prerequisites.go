package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/betterdata/webhooks/deploy/local/cache"
	"github.com/betterdata/webhooks/deploy/local/takeover"
)

// kafkaVersion is the Apache Kafka that tests run against.
const kafkaVersion = "4.2.0"

// tools are what tests need beside Go, and the Debian package that has each.
var tools = map[string]struct{ debian, otherwise string }{
	"java": {"openjdk-17-jre-headless", "a Java runtime, 17 or newer"},
	"mvn":  {"maven", "Apache Maven"},
	"npm":  {"npm", "Node.js with npm"},

	"prometheus-alertmanager": {"prometheus-alertmanager", "Debian's Alertmanager"},
	"prometheus":              {"prometheus", "Prometheus"},
	"promtool":                {"prometheus", "Prometheus, which has promtool"},
}

// need finds a tool, installing it where apt-get can.
func need(ctx context.Context, tool string) (string, error) {
	if path, err := usable(ctx, tool); err == nil {
		return path, nil
	}
	t := tools[tool]
	if err := aptInstall(ctx, t.debian); err != nil {
		return "", fmt.Errorf("%s is missing (%w): install %s", tool, err, t.otherwise)
	}
	return usable(ctx, tool)
}

func usable(ctx context.Context, tool string) (string, error) {
	path, err := exec.LookPath(tool)
	if err != nil || tool != "java" {
		return path, err
	}
	out, err := exec.CommandContext(ctx, path, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("java -version: %w", err)
	}
	m := regexp.MustCompile(`version "(\d+)`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("java -version says %q", out)
	}
	if v, _ := strconv.Atoi(string(m[1])); v < 17 {
		return "", fmt.Errorf("java is version %d, Kafka %s needs 17", v, kafkaVersion)
	}
	return path, nil
}

// aptInstall is serialized between test processes, as dpkg allows one at a time.
func aptInstall(ctx context.Context, pkg string) error {
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return fmt.Errorf("no apt-get here")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("not root, so apt-get was not tried")
	}
	lock, err := takeover.Lock(ctx, filepath.Join(os.TempDir(), "webhooks-test-apt.lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, args := range [][]string{{"update", "-q"}, {"install", "-q", "-y", "--no-install-recommends", pkg}} {
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, out[max(0, len(out)-300):])
		}
	}
	return nil
}

// kafkaJars is the class path of Apache Kafka and the java to run it.
var kafkaJars = sync.OnceValues(func() (command []string, err error) {
	return Java(context.Background(), "kafka-"+kafkaVersion,
		"org.apache.kafka:kafka_2.13:"+kafkaVersion, "org.apache.logging.log4j:log4j-core:2.25.3")
})

// Java is the command that runs Java with some Maven artifacts (group:artifact:version) and what they depend on. They are
// fetched once and kept in the user's cache under that name.
func Java(ctx context.Context, name string, artifacts ...string) (command []string, err error) {
	java, err := need(ctx, "java")
	if err != nil {
		return nil, err
	}
	folder, err := cache.Folder(ctx, name, func(ctx context.Context, folder string) error {
		return fetchJars(ctx, folder, artifacts)
	})
	if err != nil {
		return nil, fmt.Errorf("fetch %s from Maven: %w", name, err)
	}
	return []string{java, "-cp", filepath.Join(folder, "*")}, nil
}

func fetchJars(ctx context.Context, folder string, artifacts []string) error {
	mvn, err := need(ctx, "mvn")
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "webhooks-test-pom-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(work, "pom.xml"), pom(artifacts), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory="+folder)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mvn dependency:copy-dependencies: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return nil
}

// pom is a project that is nothing but its dependencies.
func pom(artifacts []string) []byte {
	text := []byte(`<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>` +
		"<groupId>webhooks</groupId><artifactId>jars</artifactId><version>1</version><dependencies>")
	for _, artifact := range artifacts {
		parts := strings.SplitN(artifact, ":", 3)
		text = fmt.Appendf(text, "<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>",
			parts[0], parts[1], parts[2])
	}
	return append(text, "</dependencies></project>"...)
}
