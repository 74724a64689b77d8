package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// FuzzLoad reads any text as a configuration: it is refused with a sentence, or what `config show` prints of it loads as the same.
func FuzzLoad(f *testing.F) {
	for _, text := range []string{
		"", "name = 'x'\n[limits]\nmany = 5\nwait = '1m30s'\n", "names = ['a', 'b']\n", "[limits]\nwait = 5\n",
		"name = \"\\u0000\"\n", "limits.many = 1e3\n", "[[limits]]\n", "name = 1979-05-27T07:32:00Z\n", "NAME = 'folded'\n",
	} {
		f.Add(text)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(dir, "c.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		loaded := defaults()
		if _, err := Load(Source{File: file}, loaded); err != nil {
			return
		}
		var shown bytes.Buffer
		if err := showConfig(&shown, loaded, file); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, shown.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		again := defaults()
		if _, err := Load(Source{File: file}, again); err != nil {
			t.Fatalf("what is shown does not load: %v\n%s", err, &shown)
		}
		if !reflect.DeepEqual(loaded, again) {
			t.Fatalf("loaded %+v, shown and loaded again %+v", loaded, again)
		}
	})
}
