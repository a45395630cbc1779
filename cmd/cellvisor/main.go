// Command cellvisor is the program: server, worker, and the operators' command line in one binary. Each file holds one noun; what they do lives
// in the packages below.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
