# make run    the whole system on this machine, in the foreground (needs Go and npm)
# make test   all tests, with the race detector, on a real Kafka and ClickHouse that they start; then each fuzz target a while
# make chaos  ten minutes of killing and freezing the processor under load, then four on three brokers and four of kills alone; as
#             much of the deliverer; CHAOS='-seed 7'
# make lint   what must hold of the code before it is tested
# make generate   the Go code of schemas/webhooks/v1

SHELL := /bin/sh
.PHONY: run build test unit fuzz chaos lint format vet staticcheck vulnerabilities protobuf generate compiler

FUZZTIME ?= 3s
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0
# npm's package is buf's own binary; built from source it takes minutes.
BUF := $(if $(shell command -v npx),npx --yes @bufbuild/buf@1.75.0,go run github.com/bufbuild/buf/cmd/buf@v1.75.0)

run: build
	./webhooks run

build:
	go build -o webhooks .

test: unit fuzz

unit: compiler
	go test -race -timeout 15m ./...

# One target at a time: `go test -fuzz` takes a single one.
fuzz:
	@set -eu; \
	for file in $$(grep -rl '^func Fuzz' --include='*_test.go' .); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
			echo "fuzz $$(dirname "$$file") $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")"; \
		done; \
	done

CHAOS ?=
chaos:
	go run ./bench/chaos -duration 10m $(CHAOS)
	go run ./bench/chaos -duration 4m -brokers 3 $(CHAOS)
	go run ./bench/chaos -duration 4m -kills-only $(CHAOS)
	go run ./bench/chaos -what delivery -duration 10m $(CHAOS)
	go run ./bench/chaos -what delivery -duration 4m -brokers 3 $(CHAOS)
	go run ./bench/chaos -what delivery -duration 4m -kills-only $(CHAOS)

# The race detector needs a C compiler.
compiler:
	@command -v $${CC:-gcc} >/dev/null || { command -v apt-get >/dev/null && apt-get update -q && apt-get install -q -y gcc libc6-dev; } \
		|| { echo "no C compiler for the race detector: install gcc" >&2; exit 1; }

lint: format vet staticcheck protobuf vulnerabilities

format:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt -w $$unformatted" >&2; exit 1; }

vet:
	go vet ./...

staticcheck:
	$(STATICCHECK) ./...

# Only a found vulnerability fails (govulncheck's exit status 3): the database is not reachable from everywhere.
vulnerabilities:
	@out=$$($(GOVULNCHECK) ./... 2>&1) && { echo "$$out" | tail -n 1; exit 0; }; \
	case "$$out" in \
	*"exit status 3"*) echo "$$out" >&2; exit 1;; \
	*) echo "govulncheck did not run: $$(echo "$$out" | grep '^govulncheck:')";; \
	esac

protobuf:
	cd schemas && $(BUF) lint
	@set -eu; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(MAKE) --no-print-directory generate OUT="$$dir/out"; \
	for file in $$(cd schemas && find . -name '*.pb.go'); do \
		cmp -s "schemas/$$file" "$$dir/out/$$file" || { echo "schemas/$$file is not current: make generate" >&2; exit 1; }; \
	done

OUT ?= .
generate:
	@set -eu; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	go build -o "$$dir/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go; \
	cd schemas && PATH="$$dir:$$PATH" $(BUF) generate -o "$(OUT)"
