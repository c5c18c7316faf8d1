package engine

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// oldestProgram is the first version whose SQL the migrations can count on.
var oldestProgram = [2]int{25, 8}

// program is the path of an installed ClickHouse of a version that will do; "" when there is none, and why.
func program(ctx context.Context) (path, why string) {
	path, err := exec.LookPath("clickhouse")
	if err != nil {
		return "", "not on PATH"
	}
	out, err := exec.CommandContext(ctx, path, "local", "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Sprintf("%s local --version: %v", path, err)
	}
	m := regexp.MustCompile(`version (\d+)\.(\d+)`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Sprintf("%s does not say its version", path)
	}
	major, _ := strconv.Atoi(string(m[1]))
	minor, _ := strconv.Atoi(string(m[2]))
	if major < oldestProgram[0] || major == oldestProgram[0] && minor < oldestProgram[1] {
		return "", fmt.Sprintf("%s is version %d.%d, older than %d.%d", path, major, minor, oldestProgram[0], oldestProgram[1])
	}
	return path, ""
}

// writeServerConfig writes the settings of `clickhouse server`: one user, default, without a password, on o.host alone.
func writeServerConfig(o options) (string, error) {
	type level struct {
		Level   string `xml:"level"`
		Console int    `xml:"console"`
	}
	type directories struct {
		Path string `xml:"users_xml>path"`
	}
	type networks struct {
		IP string `xml:"ip"`
	}
	type user struct {
		Password string   `xml:"password"`
		Networks networks `xml:"networks"`
		Profile  string   `xml:"profile"`
		Quota    string   `xml:"quota"`
	}
	path := filepath.Join(o.folder, "config.xml")
	config := struct {
		XMLName     xml.Name    `xml:"clickhouse"`
		Logger      level       `xml:"logger"`
		Host        string      `xml:"listen_host"`
		TCPPort     int         `xml:"tcp_port"`
		HTTPPort    int         `xml:"http_port"`
		Path        string      `xml:"path"`
		TmpPath     string      `xml:"tmp_path"`
		UserFiles   string      `xml:"user_files_path"`
		Schemas     string      `xml:"format_schema_path"`
		Directories directories `xml:"user_directories"`
		Profiles    struct {
			Default struct{} `xml:"default"`
		} `xml:"profiles"`
		Quotas struct {
			Default struct{} `xml:"default"`
		} `xml:"quotas"`
		User user `xml:"users>default"`
	}{
		Logger: level{"warning", 1}, Host: o.host, TCPPort: o.tcpPort, HTTPPort: o.httpPort,
		Path: o.folder + "/", TmpPath: filepath.Join(o.folder, "tmp") + "/",
		UserFiles: filepath.Join(o.folder, "user_files") + "/", Schemas: filepath.Join(o.folder, "format_schemas") + "/",
		Directories: directories{path},
		User:        user{Networks: networks{"::/0"}, Profile: "default", Quota: "default"},
	}
	out, err := xml.MarshalIndent(config, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return path, os.WriteFile(path, out, 0o600)
}
