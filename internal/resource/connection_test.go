package resource_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/resource"
)

func TestParseConnectionCreate(t *testing.T) {
	create, problem := rules(t).ParseConnectionCreate("org_1", []byte(`{"source":"stripe","account":"cus_1","accessToken":"shpat_1","move":true}`))
	require.Nil(t, problem)
	require.Equal(t, "shpat_1", create.AccessToken)
	require.True(t, create.Move)
	require.Equal(t, resource.Connection{
		OrganizationID: "org_1", Source: "stripe", Account: "cus_1", Status: "active",
	}, resource.ConnectionView(create.Connection))

	create, problem = rules(t).ParseConnectionCreate("org_1", []byte(`{"source":"stripe","account":"cus_1","organizationId":"org_1","id":null}`))
	require.Nil(t, problem)
	require.False(t, create.Move)
}

func TestParseConnectionCreateRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ body, code, pointer string }{
		"nothing":           {`{}`, "invalid_request", "/source"},
		"other source":      {`{"source":"square","account":"ML1"}`, "not_supported", "/source"},
		"no customer":       {`{"source":"stripe","account":"sub_1"}`, "invalid_request", "/account"},
		"no account":        {`{"source":"stripe"}`, "invalid_request", "/account"},
		"unknown member":    {`{"source":"stripe","account":"cus_1","colour":1}`, "invalid_request", "/colour"},
		"read-only":         {`{"source":"stripe","account":"cus_1","learned":true}`, "invalid_request", "/learned"},
		"empty token":       {`{"source":"stripe","account":"cus_1","accessToken":""}`, "invalid_request", "/accessToken"},
		"move is no bool":   {`{"source":"stripe","account":"cus_1","move":"yes"}`, "invalid_request", "/move"},
		"source no string":  {`{"source":1,"account":"cus_1"}`, "invalid_request", "/source"},
		"another's org":     {`{"source":"stripe","account":"cus_1","organizationId":"org_2"}`, "invalid_request", "/organizationId"},
		"account with path": {`{"source":"stripe","account":"cus_1/../x"}`, "invalid_request", "/account"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problem := rules(t).ParseConnectionCreate("org_1", []byte(tc.body))
			require.NotNil(t, problem)
			require.Equal(t, 422, problem.Status)
			require.Equal(t, tc.code, problem.Code)
			require.Contains(t, pointers(problem), tc.pointer)
		})
	}
}
