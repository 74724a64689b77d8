package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestOnlyADeadSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	database := filepath.Join(dir, "chancery.db")
	if err := os.WriteFile(database, []byte("everything"), 0o600); err != nil {
		t.Fatal(err)
	}
	if listener, err := listenControl(database); err == nil {
		listener.Close()
		t.Error("a file was taken for a socket")
	}
	if content, err := os.ReadFile(database); err != nil || string(content) != "everything" {
		t.Errorf("the file holds %q, %v", content, err)
	}
	path := filepath.Join(dir, "control.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	alive, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	if _, err := listenControl(path); err == nil {
		t.Error("a live socket was replaced")
	}
}
