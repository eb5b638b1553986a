package engine

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/image"
)

// imageRef is what a status calls the image that a container runs.
func imageRef(img image.Image) string {
	if len(img.Digests) > 0 {
		return img.Digests[0]
	}
	return img.ID
}

func criImage(img image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{Id: img.ID, RepoTags: slices.Clone(img.Names), RepoDigests: slices.Clone(img.Digests),
		Size: uint64(max(img.SizeBytes, 0)), Spec: &runtimeapi.ImageSpec{Image: img.ID}, Pinned: img.Source == image.Imported}
	user, _, _ := strings.Cut(img.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// ListImages returns all images, or the one that the filter names.
func (e *Engine) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	if ref := req.GetFilter().GetImage().GetImage(); ref != "" {
		if img, ok := e.cfg.Images.Get(ref); ok {
			resp.Images = append(resp.Images, criImage(img))
		}
		return resp, nil
	}
	for _, img := range e.cfg.Images.List() {
		resp.Images = append(resp.Images, criImage(img))
	}
	return resp, nil
}

// ImageStatus returns an image, or none if it is not here.
func (e *Engine) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "get image: no reference")
	}
	img, ok := e.cfg.Images.Get(ref)
	if !ok {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: criImage(img)}, nil
}

// PullImage fetches an image; the reference in the answer is its ID.
func (e *Engine) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "pull image: no reference")
	}
	auth, err := authOf(req.GetAuth())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "pull image %q: %v", ref, err)
	}
	img, err := e.cfg.Images.Pull(ctx, ref, auth, nil)
	if err != nil {
		if errors.Is(err, image.ErrNotFound) {
			return nil, status.Error(codes.NotFound, err.Error())
		}
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// RemoveImage removes an image with all its names. One that is not here is removed.
func (e *Engine) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	img, ok := e.cfg.Images.Get(ref)
	if ref == "" || !ok {
		return &runtimeapi.RemoveImageResponse{}, nil
	}
	if err := e.cfg.Images.Remove(img.ID); err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, fmt.Errorf("remove image %q: %w", ref, err)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// authOf translates a credential; nil means none.
func authOf(a *runtimeapi.AuthConfig) (*image.Auth, error) {
	if a == nil {
		return nil, nil
	}
	out := &image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return nil, fmt.Errorf("decode credential: %w", err)
		}
		user, password, ok := strings.Cut(string(b), ":")
		if !ok {
			return nil, errors.New("decode credential: it is not user:password")
		}
		out.Username, out.Password = user, strings.TrimRight(password, "\x00")
	}
	if *out == (image.Auth{}) {
		return nil, nil
	}
	return out, nil
}
