//go:build race

package tui

// raceEnabled says that everything takes many times as long.
const raceEnabled = true
