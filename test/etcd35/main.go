// Command etcd35 is the oldest etcd that proa works with, v3.5, for the tests of
// the store on one. It is a module of its own for the reason of test/etcd.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
