package billing

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Written by hand: every event of a subscription makes one, and by reflection it cost as much as reading the event.

// AppendSnapshot appends a TenantCapabilitySnapshot as the API and subscription.updated show it. Every field is always
// there; what is unknown is null.
func AppendSnapshot(b []byte, s *webhooksv1.TenantCapabilitySnapshot) []byte {
	b = appendText(append(b, `{"organizationId":`...), s.OrganizationId)
	b = strconv.AppendUint(append(b, `,"version":`...), s.Version, 10)
	b = appendText(append(b, `,"plan":`...), s.Plan)
	b = appendText(append(b, `,"planVersion":`...), s.PlanVersion)
	b = strconv.AppendUint(append(b, `,"tier":`...), uint64(s.Tier), 10)
	b = appendText(append(b, `,"status":`...), s.Status)
	b = appendCapabilities(append(b, `,"capabilities":`...), s)
	b = appendLimits(append(b, `,"limits":`...), s.Limits)
	b = appendTime(append(b, `,"graceUntil":`...), s.GraceUntilUnixMs)
	b = appendTime(append(b, `,"periodEnd":`...), s.PeriodEndUnixMs)
	b = appendTexts(append(b, `,"subscriptionIds":`...), s.SubscriptionIds)
	b = appendTexts(append(b, `,"unmappedPrices":`...), s.UnmappedPrices)
	b = appendTime(append(b, `,"computedAt":`...), s.ComputedUnixMs)
	b = append(b, `,"cause":`...)
	if c := s.Cause; c != nil {
		b = appendText(append(b, `{"source":`...), c.Source)
		b = appendText(append(b, `,"eventId":`...), c.EventId)
		b = append(appendText(append(b, `,"type":`...), c.Type), '}')
	} else {
		b = append(b, "null"...)
	}
	return append(b, '}')
}

// AppendData appends the data of subscription.updated.
func (u *Update) AppendData(b []byte) []byte {
	b = appendText(append(b, `{"change":`...), u.Change)
	b = AppendSnapshot(append(b, `,"snapshot":`...), u.Snapshot)
	b = appendText(append(b, `,"previousPlan":`...), u.PreviousPlan)
	return append(b, '}')
}

// appendCapabilities merges the two sorted lists.
func appendCapabilities(b []byte, s *webhooksv1.TenantCapabilitySnapshot) []byte {
	granted, withheld := s.Granted, s.Withheld
	b = append(b, '{')
	for i := 0; len(granted)+len(withheld) > 0; i++ {
		if i > 0 {
			b = append(b, ',')
		}
		if len(withheld) == 0 || len(granted) > 0 && granted[0] < withheld[0] {
			b = append(appendText(b, granted[0]), ":true"...)
			granted = granted[1:]
		} else {
			b = append(appendText(b, withheld[0]), ":false"...)
			withheld = withheld[1:]
		}
	}
	return append(b, '}')
}

func appendLimits(b []byte, limits map[string]int64) []byte {
	b = append(b, '{')
	for i, name := range slices.Sorted(maps.Keys(limits)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(appendText(b, name), ':'), limits[name], 10)
	}
	return append(b, '}')
}

func appendTexts(b []byte, texts []string) []byte {
	b = append(b, '[')
	for i, text := range texts {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, text)
	}
	return append(b, ']')
}

// appendText writes a JSON string. What is not UTF-8 is replaced, which the error would say.
func appendText(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}

func appendTime(b []byte, unixMS int64) []byte {
	if unixMS == 0 {
		return append(b, "null"...)
	}
	return append(time.UnixMilli(unixMS).UTC().AppendFormat(append(b, '"'), timeLayout), '"')
}
