//go:build race

package recover

// The race build is ten times slower, and a world has one goroutine: a few seeds show that worlds share nothing.
const raceBuild = true
