package node

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/node/stream"
)

// rotateEvery is how often logs are looked at, as upstream's.
const rotateEvery = 10 * time.Second

func tailText(path string, lines int64, bytes int) string { return stream.Tail(path, lines, bytes) }

// rotateLogs keeps each container's log at LogMaxFiles files of about
// LogMaxBytes: the current one, the one before it as text, older ones compressed.
func (a *Agent) rotateLogs(ctx context.Context) {
	for a.sleep(ctx, rotateEvery) {
		list, err := a.cfg.Engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{
			Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
		if err != nil {
			continue
		}
		for _, c := range list.Containers {
			if err := a.rotateLog(ctx, c); err != nil && ctx.Err() == nil {
				a.log.Warn("log is not rotated", "container", c.Id, "err", err)
			}
		}
	}
}

func (a *Agent) rotateLog(ctx context.Context, c *runtimeapi.Container) error {
	path := filepath.Join(a.cfg.LogDir, c.Labels[labelPodNamespace]+"_"+c.Labels[labelPodName]+"_"+c.Labels[labelPodUID],
		c.Labels[labelContainerName], c.Annotations[annotationRestarts]+".log")
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || st.Size() < a.cfg.LogMaxBytes {
		return err
	}
	return rotate(ctx, path, a.cfg.LogMaxFiles, a.clock.Now(), func() error {
		_, err := a.cfg.Engine.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.Id})
		return err
	})
}

// rotate moves path aside, lets the writer make a new one, and thins the old ones.
func rotate(_ context.Context, path string, keep int, now time.Time, reopen func() error) error {
	old, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	sort.Strings(old)
	var parts []string
	for _, f := range old {
		if strings.HasSuffix(f, ".tmp") {
			os.Remove(f)
			continue
		}
		parts = append(parts, f)
	}
	for len(parts) > max(keep-2, 0) {
		if err := os.Remove(parts[0]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		parts = parts[1:]
	}
	for _, f := range parts {
		if !strings.HasSuffix(f, ".gz") {
			if err := compress(f); err != nil {
				return err
			}
		}
	}
	aside := path + "." + now.UTC().Format("20060102-150405.000")
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	if err := reopen(); err != nil {
		return errors.Join(err, os.Rename(aside, path)) // the writer still has it open
	}
	return nil
}

func compress(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	err = errors.Join(err, z.Close(), out.Close())
	if err == nil {
		err = os.Rename(tmp, path+".gz")
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Remove(path)
}
