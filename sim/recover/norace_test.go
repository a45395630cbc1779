//go:build !race

package recover

const raceBuild = false
