package stream

import "fmt"

// maxAhead is how many records of a partition a tracked group takes in one transaction: a new owner after a crash must
// suspect that many of having been started.
const maxAhead = 256

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

// ahead is how many records may be taken before the next commit.
func (o *owned) ahead() int {
	if o.spec.Window == 0 {
		return 0
	}
	return maxAhead
}
