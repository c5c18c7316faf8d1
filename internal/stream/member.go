package stream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// memberIDs reads the ids kept in the state folder, adds new ones until there are n, and returns all of them: a process
// that runs fewer sessions than its predecessor ends what the others left too. Each is a member of the group (KIP-345)
// and the transactional id of its session. They are random, so that two folders never share one, and kept, so that a
// restart ends at once what a killed process left open, and takes its place in the group. The folder's database must be
// locked.
func memberIDs(path, prefix string, n int) ([]string, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read member ids: %w", err)
	}
	var ids []string
	for _, id := range strings.Fields(string(content)) {
		// Another cluster's prefix means another cluster's folder: its ids mean nothing here.
		if strings.HasPrefix(id, prefix+"-") {
			ids = append(ids, id)
		}
	}
	if len(ids) >= n {
		return ids, nil
	}
	for len(ids) < n {
		ids = append(ids, prefix+"-"+strings.ToLower(rand.Text()))
	}
	// Written aside and renamed: a torn file would forget ids whose transactions are open.
	tmp := path + ".new"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("keep member ids: %w", err)
	}
	if err := os.WriteFile(tmp, []byte(strings.Join(ids, "\n")+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("keep member ids: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, fmt.Errorf("keep member ids: %w", err)
	}
	return ids, nil
}

// succeed ends what earlier users of the ids left, before the group is joined. An open transaction would hold back the
// offsets and the state that are to be read then; a member that does not run any more, its partitions.
func (g *Group) succeed(ctx context.Context, ids []string) error {
	for i, id := range ids {
		if err := g.abortOpen(ctx, id); err != nil {
			return err
		}
		if i < len(g.sessions) {
			continue
		}
		if err := g.leave(ctx, id); err != nil {
			g.log.Warn("a member of an earlier run could not be taken out of the group; its session must time out", "member", id, "error", err)
		}
	}
	return nil
}

// abortOpen aborts the transaction that is open under an id.
func (g *Group) abortOpen(ctx context.Context, id string) error {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = &id
	req.TransactionTimeoutMillis = int32(g.cfg.TransactionTimeout.Milliseconds())
	for {
		resp, err := req.RequestWith(ctx, g.client)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err == nil {
			return nil
		}
		if incurable(err) {
			return fmt.Errorf("group %s: transactional id %s: %w", g.spec.Group, id, err)
		}
		// CONCURRENT_TRANSACTIONS while the abort's markers are written, or a cluster that is not there yet.
		g.log.Debug("waiting to abort a predecessor's transaction", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// leave takes a member out of the group; one that is not in it is left alone.
func (g *Group) leave(ctx context.Context, instance string) error {
	member := kmsg.NewLeaveGroupRequestMember()
	member.InstanceID = &instance
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group, req.Members = g.name(), append(req.Members, member)
	resp, err := req.RequestWith(ctx, g.client)
	if err != nil {
		return err
	}
	err = kerr.ErrorForCode(resp.ErrorCode)
	for _, m := range resp.Members {
		err = errors.Join(err, kerr.ErrorForCode(m.ErrorCode))
	}
	if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.GroupIDNotFound) {
		return nil
	}
	return err
}

// incurable tells the errors that trying again cannot heal: somebody must change a right or a setting.
func incurable(err error) bool {
	for _, e := range []error{
		kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed,
		kerr.ClusterAuthorizationFailed, kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism,
		kerr.UnsupportedVersion, kerr.InvalidTransactionTimeout, kerr.InvalidSessionTimeout,
		kerr.InconsistentGroupProtocol, kerr.SecurityDisabled, errForgotten,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
