// Package image keeps container images on one machine: it pulls them from
// registries, imports them from archives, unpacks their layers once, and hands
// out overlayfs lower directories.
//
// # What lies where
//
// Everything is below Config.Dir, which one Store at a time may open (a lock
// file says who came second):
//
//	images.json              every image record, replaced as a whole
//	blobs/sha256/<hex>       configs and manifests (layers too with KeepBlobs)
//	layers/<chain hex>/fs    one unpacked layer, in overlayfs' own form:
//	                         a whiteout is a 0/0 character device, an opaque
//	                         directory carries trusted.overlay.opaque=y
//	layers/<chain hex>/layer.json
//	holds/<escaped owner>    the image IDs one owner holds
//	tmp/                     work in progress; emptied by Open
//
// A layer directory is named by its chain ID (OCI image spec, "Layer ChainID"),
// so images share it, and it is complete whenever it exists: it is written below
// tmp/, flushed to disk, then renamed. A record is written only after all its
// layers are in place, so a killed process or a full disk costs the work in
// progress and nothing else.
//
// # Words
//
// A reference is what a user writes ("nginx", "reg.example/a/b:1@sha256:…"); a
// name is a reference in full ("docker.io/library/nginx:latest"); a digest pin
// is "repository@sha256:…"; an ID is the sha256 digest of the image's config. A
// hold keeps an image's layers; a held image that is removed loses its names at
// once and its layers when the last hold ends. A pulled image may be collected
// automatically, an imported one may not, since nothing could bring it back.
//
// # Bounds
//
// Manifests and indexes are at most 4 MiB, configs 8 MiB, an image has at most
// 500 layers (overlayfs' own limit), a layer at most Config.MaxLayerBytes
// unpacked bytes and Config.MaxLayerEntries entries. Sizes are bytes.
//
// # Errors
//
// ErrNotFound, ErrAmbiguous and ErrReference are tested with errors.Is; what a
// registry answered is a *RegistryError, found with errors.As.
package image
