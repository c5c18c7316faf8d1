package routing

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// command applies a command on an account and writes its outcome, or has it written.
func (u unit) command(in *kgo.Record, e *event) error {
	var cmd webhooksv1.Command
	if err := proto.Unmarshal(in.Value, &cmd); err != nil {
		return u.dead(in, e, reasonCommand)
	}
	outcome := &webhooksv1.CommandOutcome{CommandId: cmd.Id}
	var problem *httpapi.Problem
	var err error
	account := ""
	switch action := cmd.Action.(type) {
	case *webhooksv1.Command_CreateConnection:
		wanted := action.CreateConnection.GetConnection()
		account = schemas.AccountKey(wanted.GetSource(), wanted.GetAccount())
		var made *webhooksv1.Connection
		made, problem, err = u.connect(account, &cmd, action.CreateConnection)
		outcome.Result = &webhooksv1.CommandOutcome_Connection{Connection: made}
	case *webhooksv1.Command_DeleteConnection:
		account = schemas.AccountKey(action.DeleteConnection.Source, action.DeleteConnection.Account)
		problem, err = u.disconnect(account, &cmd, action.DeleteConnection)
		outcome.Result = &webhooksv1.CommandOutcome_Deleted{Deleted: &webhooksv1.Deleted{}}
	case *webhooksv1.Command_AccountAdopted:
		return u.adopted(&cmd, action.AccountAdopted)
	default:
		problem = httpapi.NewProblem(http.StatusBadRequest, "unknown_command", "This version does not know the command.")
	}
	if err != nil {
		return err
	}
	if problem != nil {
		outcome.Result = &webhooksv1.CommandOutcome_Refusal{Refusal: resource.Refusal(problem)}
	}
	if cmd.IdempotencyKey != nil {
		return u.conclude(&cmd, outcome)
	}
	value, err := proto.Marshal(outcome)
	if err != nil {
		return fmt.Errorf("encode outcome of command %s: %w", cmd.Id, err)
	}
	u.tx.Emit(schemas.CommandOutcomes, account, &kgo.Record{Key: []byte(cmd.Id), Value: value})
	return nil
}

// conclude sends what came of a command back to the organization's owner, which handed it on.
func (u unit) conclude(cmd *webhooksv1.Command, outcome *webhooksv1.CommandOutcome) error {
	r, err := cloudevent.Conclusion(cmd, outcome, u.tx.Now())
	if err != nil {
		return err
	}
	u.tx.Emit(schemas.Inbound, cmd.OrganizationId, r)
	return nil
}

// connect gives the account to the command's organization. Asked again by the organization that holds it, it answers
// the connection there is, with a new access token where one is given. One that was learnt is made by API from then on,
// and holds against what events name.
func (u unit) connect(account string, cmd *webhooksv1.Command, create *webhooksv1.CreateConnection) (*webhooksv1.Connection, *httpapi.Problem, error) {
	wanted := create.GetConnection()
	if wanted.GetId() == "" || wanted.GetAccount() == "" {
		return nil, httpapi.NewProblem(http.StatusBadRequest, "unknown_command", "The command has no connection."), nil
	}
	current, err := u.connection(account)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case current != nil && current.OrganizationId == cmd.OrganizationId:
		learnt := current.Learned
		if len(wanted.SealedAccessToken) > 0 {
			current.SealedAccessToken = wanted.SealedAccessToken
		} else if !learnt {
			return current, nil, nil
		}
		current.Learned, current.TaughtUnixMs, current.TaughtSourceEventId = false, 0, ""
		if err := u.put(schemas.Connections, account, current); err != nil || !learnt {
			return current, nil, err
		}
		if err := u.gather(cmd, current); err != nil {
			return nil, nil, err
		}
		return current, nil, u.goOn(account) // its route says whether it was learnt
	case current != nil && !create.Move:
		return nil, httpapi.NewProblem(http.StatusConflict, "account_taken",
			"Another organization is connected to this account; move takes it over."), nil
	}
	made := proto.CloneOf(wanted)
	made.OrganizationId, made.Status, made.Learned = cmd.OrganizationId, resource.ConnectionActive, false
	made.CreatedUnixMs = u.tx.Now().UnixMilli()
	if err := u.put(schemas.Connections, account, made); err != nil {
		return nil, nil, err
	}
	holder, err := u.holder(account, current)
	if err != nil {
		return nil, nil, err
	}
	if err := u.tell(cmd, made, holder, wholly); err != nil {
		return nil, nil, err
	}
	if err := u.gather(cmd, made); err != nil {
		return nil, nil, err
	}
	return made, nil, u.goOn(account)
}

// gather has the organizations that an account was learnt for hand it over to the one that is connected by API, and only
// by that: none of its events goes to them any more.
func (u unit) gather(cmd *webhooksv1.Command, made *webhooksv1.Connection) error {
	account := schemas.AccountKey(made.Source, made.Account)
	holders, err := u.holders(account)
	keepers := holders.GetKeeperOrganizationIds()
	if err != nil || len(keepers) == 0 {
		return err
	}
	holders.KeeperOrganizationIds = nil
	if err := u.putHolders(account, holders); err != nil {
		return err
	}
	for _, keeper := range keepers {
		if err := u.tell(cmd, made, keeper, wholly); err != nil {
			return err
		}
	}
	return nil
}

// tell lets the organizations know of a new connection: the one that held the account, "" for none, has to hand it over,
// and one that nobody hands anything must no longer send on what comes to it. Who is connected again has it still.
func (u unit) tell(cmd *webhooksv1.Command, made *webhooksv1.Connection, holder string, on terms) error {
	org := made.OrganizationId
	if holder == org {
		return nil
	}
	if holder != "" {
		org = holder
		if err := u.await(schemas.AccountKey(made.Source, made.Account)); err != nil {
			return err
		}
	}
	told := &webhooksv1.Command{
		// An event may teach the same more than once.
		Id:             id.Derive(id.Command, "tell", cmd.Id, org, strconv.FormatInt(u.order, 10)),
		OrganizationId: org, KeyId: cmd.KeyId, IssuedUnixMs: u.tx.Now().UnixMilli(),
	}
	if holder != "" {
		told.Action = &webhooksv1.Command_ReleaseAccount{ReleaseAccount: &webhooksv1.ReleaseAccount{
			Source: made.Source, Account: made.Account, ToOrganizationId: made.OrganizationId,
			MovedUnixMs: u.tx.Now().UnixMilli(), Order: u.order, Learnt: on != wholly, Stays: on == introduced,
		}}
	} else {
		told.Action = &webhooksv1.Command_AdoptAccount{AdoptAccount: &webhooksv1.AdoptAccount{
			Source: made.Source, Account: made.Account, MovedUnixMs: u.tx.Now().UnixMilli(), Order: u.order,
		}}
	}
	r, err := cloudevent.Command(told)
	if err != nil {
		return err
	}
	u.tx.Emit(schemas.Inbound, org, r)
	return nil
}

// disconnect takes connection and route away: later events are held again, as are those not handed on yet. The organization
// keeps what it knows of the account until another one is connected.
func (u unit) disconnect(account string, cmd *webhooksv1.Command, remove *webhooksv1.DeleteConnection) (*httpapi.Problem, error) {
	current, err := u.connection(account)
	if err != nil {
		return nil, err
	}
	if current == nil || current.Id != remove.ConnectionId || current.OrganizationId != cmd.OrganizationId {
		return httpapi.NotFound(), nil
	}
	u.tx.Delete(schemas.Connections, []byte(account))
	u.tx.Delete(schemas.Routes, []byte(account))
	u.rest(account)
	return nil, u.leave(account, current.OrganizationId)
}
