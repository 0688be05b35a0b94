// etcd for the test cluster, in a module of its own because its versions of
// grpc and opentelemetry differ from those of Kubernetes.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
