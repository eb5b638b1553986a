// Command etcd is the real etcd server, for tests of what runs on one. It is a
// module of its own, so that the server's dependencies are none of proa's.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
