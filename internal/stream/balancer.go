package stream

import "github.com/twmb/franz-go/pkg/kgo"

// balancer is cooperative-sticky, and tells what this member is assigned before anything is revoked. The client's own
// callbacks come too late for a clean hand-over: by the time OnPartitionsRevoked names what is lost, no transaction may
// be ended (End inside of it deadlocks), and OnPartitionsCallbackBlocked, which comes in time, does not name it. Without
// the names every rebalance would drain every partition.
type balancer struct {
	kgo.GroupBalancer
	synced func(assigned map[string][]int32)
}

func newBalancer(synced func(map[string][]int32)) balancer {
	return balancer{kgo.CooperativeStickyBalancer(), synced}
}

// ParseSyncAssignment is called once a rebalance, with the new assignment.
func (b balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	assigned, err := b.GroupBalancer.ParseSyncAssignment(assignment)
	if err == nil {
		b.synced(assigned)
	}
	return assigned, err
}
