// Package pb is the protobuf form of the wire: hsm.proto and what protoc makes
// of it. Package rpc converts between it and the contract; nobody else needs it.
//
// To generate it again, have protoc, protoc-gen-go v1.36 and protoc-gen-go-grpc
// v1.6 in PATH.
package pb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative hsm.proto
