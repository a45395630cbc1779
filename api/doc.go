// Package api is the control API of a cluster: the gRPC service cellvisor.v1 and what a client needs around it. It is all that the
// command line and the console know of a cluster.
//
//   - cellvisor.proto defines the service; cellvisor.pb.go and cellvisor_grpc.pb.go are made from it by `make generate`.
//   - Client talks to a cluster through whichever of its servers answers, and goes on at another one when that server dies.
//   - Errors carry gRPC codes; ExitCode maps them to the exit codes of the program, in this one place.
//
// A server that was stopped with SIGSTOP still accepts connections. That is why Dial asks each server a question before it chooses one, and
// why streams that follow carry a sign of life every second: silence means "go on elsewhere".
package api

//go:generate protoc -I .. --go_out=.. --go_opt=paths=source_relative --go-grpc_out=.. --go-grpc_opt=paths=source_relative api/cellvisor.proto
