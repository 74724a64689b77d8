package main

import (
	"fmt"
	"strings"
	"testing"

	"chancery/users"
)

func TestStatusShowsRowsThatCannotBeRead(t *testing.T) {
	row := users.Unreadable{Kind: "grant", ID: 7, Err: fmt.Errorf("%w: its access key", users.ErrUnreadable)}
	view := statusView{Database: viewDatabase(defaultConfig(), users.NewSnapshot(1, nil, nil, nil, nil, row))}
	var text strings.Builder
	for _, f := range view.fields(defaultConfig()) {
		fmt.Fprintln(&text, f)
	}
	if !strings.Contains(text.String(), "{LEFT OUT grant 7: a row of the database cannot be read: its access key (nobody can use it") {
		t.Errorf("status shows\n%s", &text)
	}
}

func TestStatusWithoutTokens(t *testing.T) {
	empty, soft := databaseView{}, databaseView{Tokens: 1, SoftwareTokens: []string{"desk"}}
	if got := empty.tokens(); got != "none" {
		t.Errorf("without tokens: %q", got)
	}
	if got := soft.tokens(); got != "1 (hardware: no for desk)" {
		t.Errorf("with a token in software: %q", got)
	}
}
