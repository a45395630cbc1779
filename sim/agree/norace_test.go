//go:build !race

package agree

const raceBuild = false
