package main

import (
	"encoding/hex"
	"fmt"
	"time"

	"chancery/token"
	"chancery/users"
)

// The views are the JSON forms of what the database holds. Their fields are stable.

type tokenView struct {
	Name              string    `json:"name"`
	Driver            string    `json:"driver"`
	Hardware          bool      `json:"hardware"`
	Location          string    `json:"location"`
	Serial            string    `json:"serial"`
	Label             string    `json:"label"`
	MaxSessions       int       `json:"max_sessions"` // 0: the driver's default
	PINChangeInFlight bool      `json:"pin_change_in_flight"`
	PINRejected       bool      `json:"pin_rejected"`
	CreatedAt         time.Time `json:"created_at"`
	Managers          []string  `json:"managers"`
	Keys              []string  `json:"keys"`

	Replicas []replicaView `json:"replicas"`
}

type keyView struct {
	Name         string            `json:"name"`
	Token        string            `json:"token"`
	Algorithm    token.Algorithm   `json:"algorithm"`
	Hardware     bool              `json:"hardware"`
	Origin       users.Origin      `json:"origin"`
	Disabled     bool              `json:"disabled"`
	Handle       string            `json:"handle"`
	TokenKeyID   string            `json:"token_key_id"` // hex
	CreatedAt    time.Time         `json:"created_at"`
	Certificates []certificateView `json:"certificates"`
	Grants       []grantView       `json:"grants"`
}

type certificateView struct {
	Kind        users.CertificateKind `json:"kind"`
	Name        string                `json:"name"`
	Fingerprint string                `json:"fingerprint"`
	CreatedAt   time.Time             `json:"created_at"`
}

type grantView struct {
	ID          int64      `json:"id"`
	User        string     `json:"user"`
	Token       string     `json:"token"`
	Key         string     `json:"key,omitempty"` // absent for a token manager
	Hardware    bool       `json:"hardware"`
	Role        users.Role `json:"role"`
	Expires     *time.Time `json:"expires"` // null: never
	Expired     bool       `json:"expired"`
	Fingerprint string     `json:"access_key_fingerprint"`
	CreatedAt   time.Time  `json:"created_at"`
	CreatedBy   string     `json:"created_by"`
	Lease       string     `json:"lease,omitempty"`      // how long an unlock lasts; absent: the configuration says it
	LeaseUses   int        `json:"lease_uses,omitempty"` // signatures that an unlock is good for; absent: any number
	Priority    int        `json:"priority"`             // 0 to 7

	lease time.Duration
}

func viewToken(s *users.Snapshot, t *users.Token) tokenView {
	view := tokenView{
		Name: t.Name, Driver: t.Driver, Hardware: t.Hardware, Location: t.Location, Serial: t.Serial, Label: t.Label,
		MaxSessions: t.MaxSessions, PINChangeInFlight: t.PINStaged, PINRejected: t.PINRejected, CreatedAt: t.CreatedAt.UTC(),
		Managers: []string{}, Keys: []string{}, Replicas: viewReplicas(t),
	}
	for i := range s.Grants() {
		g := &s.Grants()[i]
		if g.TokenID == t.ID && g.Role == users.RoleTokenManager {
			view.Managers = append(view.Managers, userName(s, g.UserID))
		}
	}
	for _, k := range s.Keys() {
		if k.TokenID == t.ID {
			view.Keys = append(view.Keys, k.Name)
		}
	}
	return view
}

func viewKey(s *users.Snapshot, k *users.Key) keyView {
	view := keyView{
		Name: k.Name, Algorithm: k.Algorithm, Origin: k.Origin, Disabled: k.Disabled, Handle: k.Handle,
		TokenKeyID: hex.EncodeToString(k.TokenKeyID), CreatedAt: k.CreatedAt.UTC(),
		Certificates: collect(k.Certificates, viewCertificate), Grants: []grantView{},
	}
	if t, ok := s.TokenByID(k.TokenID); ok {
		view.Token, view.Hardware = t.Name, t.Hardware
	}
	for i := range s.Grants() {
		if g := &s.Grants()[i]; g.KeyID == k.ID {
			view.Grants = append(view.Grants, viewGrant(s, g))
		}
	}
	return view
}

func viewCertificate(c users.Certificate) certificateView {
	return certificateView{Kind: c.Kind, Name: c.Name, Fingerprint: c.Fingerprint, CreatedAt: c.CreatedAt.UTC()}
}

func viewGrant(s *users.Snapshot, g *users.Grant) grantView {
	view := grantView{
		ID: g.ID, User: userName(s, g.UserID), Role: g.Role, Expires: optionalTime(g.Expires), Expired: g.Expired(time.Now()),
		Fingerprint: g.Access.Fingerprint(), CreatedAt: g.CreatedAt.UTC(), CreatedBy: g.CreatedBy,
		LeaseUses: g.LeaseUses, Priority: g.Priority, lease: g.Lease,
	}
	if g.Lease > 0 {
		view.Lease = g.Lease.String()
	}
	if t, ok := s.TokenByID(g.TokenID); ok {
		view.Token, view.Hardware = t.Name, t.Hardware
	}
	if k, ok := s.KeyByID(g.KeyID); ok {
		view.Key = k.Name
	}
	return view
}

func userName(s *users.Snapshot, id int64) string {
	if user, ok := s.UserByID(id); ok {
		return user.Name
	}
	return fmt.Sprintf("#%d", id)
}

// target names what the grant is for.
func (g grantView) target() string {
	if g.Key == "" {
		return "token " + g.Token
	}
	return "key " + g.Key
}

// until tells the grant's end for people.
func (g grantView) until() string {
	switch {
	case g.Expires == nil:
		return "never"
	case g.Expired:
		return moment(*g.Expires) + " (expired)"
	}
	return moment(*g.Expires)
}

// sentence describes the grant in one line.
func (g grantView) sentence() string {
	text := fmt.Sprintf("#%d %s is %s of %s (hardware: %s), expires: %s", g.ID, g.User, g.Role, g.target(), yesNo(g.Hardware), g.until())
	if lease := leaseText(g.lease, g.LeaseUses); lease != "" {
		text += ", unlocks last: " + lease
	}
	if g.Priority > 0 {
		text += fmt.Sprintf(", priority: %d", g.Priority)
	}
	return text
}

// leaseText says what an unlock is good for, where the grant limits it.
func leaseText(lease time.Duration, uses int) string {
	switch {
	case lease > 0 && uses > 0:
		return fmt.Sprintf("%s or %s", lease, count(uses, "signature"))
	case lease > 0:
		return lease.String()
	case uses > 0:
		return count(uses, "signature")
	}
	return ""
}
