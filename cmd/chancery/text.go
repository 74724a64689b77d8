package main

import (
	"strconv"
	"strings"
	"unicode"
)

// printable returns foreign text as it is if a terminal shows it as it is, and else quoted.
func printable(text string) string {
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(text)
	}
	return text
}

func quoted(text string) string { return strconv.Quote(text) }

// count says how many of how many files.
func count(some, all int) string { return strconv.Itoa(some) + " of " + strconv.Itoa(all) + " files" }
