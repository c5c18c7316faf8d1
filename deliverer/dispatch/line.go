package dispatch

// line are deliveries that wait for something, in the order they came, each once.
type line struct {
	order []string
	in    map[string]bool
}

func newLine() *line { return &line{in: map[string]bool{}} }

func (l *line) add(delivery string) {
	if !l.in[delivery] {
		l.in[delivery] = true
		l.order = append(l.order, delivery)
	}
}

// take takes the first n out, or all.
func (l *line) take(n int) []string {
	n = min(n, len(l.order))
	first := l.order[:n]
	l.order = l.order[n:]
	for _, delivery := range first {
		delete(l.in, delivery)
	}
	return first
}
