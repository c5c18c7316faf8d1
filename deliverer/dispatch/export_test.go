package dispatch

// InFlight is the number of attempts begun and not ended, and how many of them wait for a goroutine.
func (d *Dispatcher) InFlight() (begun, queued int) {
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	return int(d.inFlight.Load()), len(d.pool.queue)
}
