package stream

import "fmt"

// A new owner after a crash must suspect every record that the old one could have taken since its last commit, so each
// commit of a tracked group announces how many these are. The number follows the load: a partition with little traffic
// leaves few in doubt, a busy one is at maxAhead after five transactions.
const (
	minAhead = 8
	maxAhead = 256
)

func (s *Spec) check() error {
	switch {
	case s.Group == "" || s.Input == "":
		return fmt.Errorf("group %q: Group and Input are required", s.Group)
	case s.NewTask == nil:
		return fmt.Errorf("group %s: NewTask is required", s.Group)
	case s.Window < 0 || s.Window > MaxWindow:
		return fmt.Errorf("group %s: Window is %d; 0 to %d are possible", s.Group, s.Window, MaxWindow)
	}
	return nil
}

func (s *Spec) topics() []string {
	topics := make([]string, len(s.Stores))
	for i := range s.Stores {
		topics[i] = s.Stores[i].Topic
	}
	return topics
}

// ahead is how many records may be taken between the open transaction's commit and the next: twice what this one took.
func (o *owned) ahead() int {
	if o.spec.Window == 0 {
		return 0
	}
	return min(max(2*o.track.spent, minAhead), maxAhead)
}
