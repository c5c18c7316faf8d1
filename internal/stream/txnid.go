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

// transactionalIDs reads the ids kept in the state folder, adds new ones until there are n, and returns all of them:
// a process that runs fewer sessions than its predecessor aborts for the others too. They are random, so that two
// folders never share one, and kept, so that a restart ends at once what a killed process left open. The folder's
// database must be locked.
func transactionalIDs(path, prefix string, n int) ([]string, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read transactional ids: %w", err)
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
		return nil, fmt.Errorf("keep transactional ids: %w", err)
	}
	if err := os.WriteFile(tmp, []byte(strings.Join(ids, "\n")+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("keep transactional ids: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, fmt.Errorf("keep transactional ids: %w", err)
	}
	return ids, nil
}

// abortPredecessors ends the transactions that earlier users of the ids left open, before the group is joined: an open
// one holds back the offsets and the state that are to be read then.
func (g *Group) abortPredecessors(ctx context.Context, ids []string) error {
	for _, id := range ids {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID = &id
		req.TransactionTimeoutMillis = int32(g.cfg.TransactionTimeout.Milliseconds())
		for {
			resp, err := req.RequestWith(ctx, g.client)
			if err == nil {
				err = kerr.ErrorForCode(resp.ErrorCode)
			}
			if err == nil {
				break
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
	return nil
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
