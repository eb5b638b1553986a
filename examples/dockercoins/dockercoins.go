// Package dockercoins carries the manifests of the sample application, the coin
// miner of many a container training, written anew: rng, hasher, worker, webui and
// a Redis server. The programs are in the folders beside; build-images.sh makes
// their images.
package dockercoins

import (
	"embed"
	"io/fs"
)

//go:embed manifests/*.yaml
var files embed.FS

// Manifests holds the YAML files, to be applied in the order of their names.
func Manifests() fs.FS {
	sub, err := fs.Sub(files, "manifests")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	return sub
}
