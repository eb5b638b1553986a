package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Open looks for the reason when etcd has not answered for reasonAfter, and gives
// each endpoint reasonWithin.
const (
	reasonAfter  = time.Second
	reasonWithin = 2 * time.Second
)

// reason asks each endpoint once, on a connection of its own: etcd's client tries
// again by itself, and all that it says in the end is that time is over. final
// says that no endpoint's certificate and ours go together: waiting does not help.
func (s *Store) reason(ctx context.Context) (why error, final bool) {
	var all []error
	final = true
	for _, e := range s.cfg.Endpoints {
		err := s.askOne(ctx, e)
		if err == nil {
			return nil, false
		}
		// No error of Go's: gRPC hands it on in words.
		final = final && (strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: "))
		all = append(all, fmt.Errorf("%s: %w", e, err))
	}
	return errors.Join(all...), final
}

// askOne is nil when the endpoint answers, whatever it says.
func (s *Store) askOne(ctx context.Context, endpoint string) error {
	scheme, host, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme, host = "http", endpoint
	}
	creds := insecure.NewCredentials()
	if scheme == "https" || s.cfg.TLS != nil && !ok {
		creds = credentials.NewTLS(s.cfg.TLS.Clone())
	}
	c, err := grpc.NewClient("passthrough:///"+host, grpc.WithTransportCredentials(creds))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, reasonWithin)
	defer cancel()
	_, err = pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: []byte(s.cfg.Prefix + "/health"), CountOnly: true})
	switch st := status.Convert(err); st.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return errors.New(st.Message())
	}
	return nil
}
