package main

import (
	"context"

	"github.com/spf13/cobra"

	"chancery/token"
	"chancery/users"
)

type completion = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

// namesOf completes the first argument with names out of the database. A shell that cannot read
// the database completes nothing and says nothing.
func (a *app) namesOf(names func(*users.Snapshot) []string) completion {
	return func(command *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.readNames(command, names), cobra.ShellCompDirectiveNoFileComp
	}
}

// inOrder completes each argument by the completion at its place.
func (a *app) inOrder(places ...func(*users.Snapshot) []string) completion {
	return func(command *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= len(places) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.readNames(command, places[len(args)]), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) readNames(command *cobra.Command, names func(*users.Snapshot) []string) []cobra.Completion {
	if command.Context() == nil {
		command.SetContext(context.Background())
	}
	var found []string
	a.leaveSealed = true // whoever presses a key waits for no TPM
	_ = a.withStore(command, func(ctx context.Context, store users.Store) error {
		s, err := store.Snapshot(ctx)
		if err == nil {
			found = names(s)
		}
		return err
	})
	return found
}

// completeFlag completes a flag's value with names out of the database.
func (a *app) completeFlag(command *cobra.Command, flag string, names func(*users.Snapshot) []string) {
	must(command.RegisterFlagCompletionFunc(flag, func(command *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.readNames(command, names), cobra.ShellCompDirectiveNoFileComp
	}))
}

// completeWords completes a flag's value with fixed words.
func completeWords(command *cobra.Command, flag string, words ...string) {
	must(command.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)))
}

// must ends the program on what only a mistake in this program can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func userNames(s *users.Snapshot) []string {
	return collect(s.Users(), func(u users.User) string { return u.Name })
}

func tokenNames(s *users.Snapshot) []string {
	return collect(s.Tokens(), func(t users.Token) string { return t.Name })
}

func keyNames(s *users.Snapshot) []string {
	return collect(s.Keys(), func(k users.Key) string { return k.Name })
}

func algorithmNames() []string {
	return collect(token.Algorithms(), func(a token.Algorithm) string { return string(a) })
}

func collect[T, U any](values []T, get func(T) U) []U {
	out := make([]U, 0, len(values))
	for _, v := range values {
		out = append(out, get(v))
	}
	return out
}
