package dispatch

// Flying is the number of attempts under way in all tasks.
func (d *Dispatcher) Flying() int {
	n := 0
	d.eachTask(func(t *task) {
		t.mu.Lock()
		defer t.mu.Unlock()
		n += t.flying
	})
	return n
}
