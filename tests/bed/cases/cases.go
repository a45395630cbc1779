// Package cases holds the tests that boot stock Linux kernels. They need a KVM that runs ring 0 of a guest at speed: a machine with VT-x or
// SVM, or the nested bed (see tests/bed), which compiles this package's tests into a static binary and runs them inside.
//
// The directory that CELLVISOR_BED names holds what they boot: kernels, modules and a static busybox, as `make linux` puts them together.
// Without it they skip.
package cases
