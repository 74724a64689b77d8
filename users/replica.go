package users

import "time"

// Replica is a further token that holds the same key pairs as a registered one, its primary, under the same PIN: a clone of
// an HSM, or the other one of a high-availability pair. Its name and serial number are no other replica's or token's.
type Replica struct {
	ID          int64
	TokenID     int64 // the primary's
	Name        string
	Driver      string // as in Token
	Location    string
	Serial      string
	Label       string
	MaxSessions int // 0: the driver's default
	CreatedAt   time.Time
}

// Homes are the tokens that hold this token's keys, itself first, each as a token of its own.
func (t Token) Homes() []Token {
	replicas := t.Replicas
	t.Replicas = nil
	homes := []Token{t}
	for _, r := range replicas {
		homes = append(homes, Token{
			Name: r.Name, Driver: r.Driver, Location: r.Location, Serial: r.Serial, Label: r.Label, MaxSessions: r.MaxSessions, CreatedAt: r.CreatedAt,
		})
	}
	return homes
}

// Replica finds a replica and its primary by the replica's name.
func (s *Snapshot) Replica(name string) (*Replica, *Token, bool) {
	for i := range s.tokens {
		for j := range s.tokens[i].Replicas {
			if r := &s.tokens[i].Replicas[j]; r.Name == name {
				return r, &s.tokens[i], true
			}
		}
	}
	return nil, nil, false
}
