package main

func (r *Results) plotAll(dir string) error { return nil }
