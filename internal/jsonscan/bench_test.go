package jsonscan_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/betterdata/webhooks/internal/jsonscan"
)

// BenchmarkStripe scans every Stripe fixture for the fields the edge needs, beside encoding/json's Valid, which finds
// nothing.
func BenchmarkStripe(b *testing.B) {
	bodies, size := stripeBodies(b)
	s := jsonscan.Compile("/id", "/type", "/created", "/livemode", "/data/object/id", "/data/object/object", "/data/object/customer", "/data/object/customer/id")
	out := make([]jsonscan.Value, s.Paths())
	run := func(name string, read func([]byte) bool) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				for _, body := range bodies {
					if !read(body) {
						b.Fatal("refused")
					}
				}
			}
		})
	}
	run("scan", func(body []byte) bool { return s.Scan(body, out) == nil })
	run("valid", jsonscan.Valid)
	run("encoding-json", json.Valid)
}

func stripeBodies(b *testing.B) (bodies [][]byte, size int64) {
	paths, err := filepath.Glob("../../../shared/fixtures/stripe/*/*.json")
	if err != nil || len(paths) == 0 {
		b.Skip("../shared/fixtures is absent")
	}
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		bodies, size = append(bodies, body), size+int64(len(body))
	}
	return bodies, size
}
