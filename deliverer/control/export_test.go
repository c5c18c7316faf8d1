package control

// Allowed is how many attempts may run at once.
func (e *Endpoint) Allowed() int { return int(e.allowed) }
