// Package tui is the operators' console, `cellvisor top`: the state of a cluster on a terminal, drilled down by keys, and the acts of the
// command line in its own grammar. It sees the cluster through package api only.
//
// How it hangs together (arrows are the flow of data; everything right of the feed runs on Bubble Tea's one goroutine):
//
//	control API --> feed.Feed --Update--> App --Snapshot--> screen --> pane --rows--> table.Table --> lines
//	     ^                                 ^ keys                                                     |
//	     +------------ act (vm stop, …) <--+-- command line <-- key or ':'                  terminal <-+
//
// A screen is a set of panes and a layout of them; a pane has its own size, keys and rows. Rows are made by pure functions of a snapshot
// (rows.go) and are tested apart from drawing. Keys that act, and keys that go somewhere, are translated into a line of the CLI's grammar
// and run by the same parser as a line typed after ':'; so the line shown for a key is what the key does.
//
// To add a screen: write its rows, give it a constructor in screens.go, and a line in the table of verbs in command.go.
//
// Invariants:
//   - View returns exactly height lines of exactly width cells, whatever the size, from 1x1 up. Below 40x10 it asks for a larger terminal.
//   - Every text of the cluster is cleaned before it is drawn (see package theme).
//   - What destroys is asked about first, with what it will do; nothing acts with ReadOnly.
//   - No state is told by colour alone: a glyph and a word stand for it.
package tui
