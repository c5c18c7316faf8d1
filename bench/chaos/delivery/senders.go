package delivery

// senders knows which instance made a connection: the one that the rows of attempts on it name.
type senders map[int64]string

func newSenders(ev *evidence) senders {
	s := senders{}
	for _, r := range ev.attemptLog {
		// Only of what came once is it known which request the row is of.
		came := ev.came[attempt{r.attempt.DeliveryId, int(r.attempt.Number)}]
		if len(came) == 1 && !r.attempt.MaybeRepeated {
			s[came[0].connection] = r.attempt.Worker
		}
	}
	return s
}

// of is the instance that sent a request, "" when it is not known.
func (s senders) of(r request) string { return s[r.connection] }
