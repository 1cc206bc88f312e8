package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/coder/agentstatsd/internal/freeport"
)

// manifest is what is read of objects of Kubernetes that the chart makes.
type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	// Data is of ConfigMaps, and of Secrets in base64.
	Data map[string]string
	Spec struct {
		Replicas        int
		MinReadySeconds int `yaml:"minReadySeconds"`
		Strategy        struct {
			RollingUpdate struct {
				MaxUnavailable int `yaml:"maxUnavailable"`
				MaxSurge       int `yaml:"maxSurge"`
			} `yaml:"rollingUpdate"`
		}
		Template             struct{ Spec podSpec }
		VolumeClaimTemplates []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
	}
}

// podSpec is what is read of a pod.
type podSpec struct {
	TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
	Containers                    []container
	Volumes                       []volume
}

type container struct {
	Args []string
	Env  []struct {
		Name, Value string
		ValueFrom   struct {
			SecretKeyRef struct{ Name, Key string } `yaml:"secretKeyRef"`
		} `yaml:"valueFrom"`
	}
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	StartupProbe   probe `yaml:"startupProbe"`
	LivenessProbe  probe `yaml:"livenessProbe"`
	ReadinessProbe probe `yaml:"readinessProbe"`
	Lifecycle      struct {
		PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
	}
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type volume struct {
	Name      string
	ConfigMap struct{ Name string } `yaml:"configMap"`
	Secret    struct {
		SecretName string `yaml:"secretName"`
		Items      []struct{ Key, Path string }
	}
}

type probe struct {
	HTTPGet struct {
		Path, Port, Scheme string
	} `yaml:"httpGet"`
}

// files are those of a Secret or ConfigMap, by their keys.
type files map[string]string

// release is what the chart makes of values, with the Secrets that it takes for granted.
type release struct {
	objects []manifest
	secrets map[string]files
	maps    map[string]files
}

// readRelease reads objects that the chart has made: what make generate keeps in the tree.
func readRelease(t *testing.T, file string, secrets map[string]files) *release {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	r := &release{secrets: maps.Clone(secrets), maps: make(map[string]files)}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var m manifest
		if err := decoder.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		r.objects = append(r.objects, m)
		switch m.Kind {
		case "ConfigMap":
			r.maps[m.Metadata.Name] = m.Data
		case "Secret":
			made := make(files)
			for key, value := range m.Data {
				plain, err := base64.StdEncoding.DecodeString(value)
				require.NoError(t, err)
				made[key] = string(plain)
			}
			r.secrets[m.Metadata.Name] = made
		}
	}
	return r
}

// workload returns the Deployment or StatefulSet with this name.
func (r *release) workload(t *testing.T, name string) manifest {
	t.Helper()
	i := slices.IndexFunc(r.objects, func(m manifest) bool {
		return (m.Kind == "Deployment" || m.Kind == "StatefulSet") && m.Metadata.Name == name
	})
	require.GreaterOrEqual(t, i, 0, "there is no workload %s", name)
	return r.objects[i]
}

// pod is a process with the arguments, the environment and the volumes of a pod.
type pod struct {
	container container
	args, env []string
	// ports are the addresses that stand for the ports of the pod, by their names.
	ports map[string]string
	// dirs are the directories that stand for mounts, by the names of volumes.
	dirs map[string]string
	// grace is the time from the signal to stop to the end by force.
	grace, preStop time.Duration

	cmd    *exec.Cmd
	exited chan error
	log    lockedBuffer
}

// newPod makes the volumes of a pod of a workload, and starts nothing. Texts of arguments,
// environment and ConfigMaps are replaced as replacements say, in pairs.
func newPod(t *testing.T, r *release, workload string, replacements ...string) *pod {
	t.Helper()
	m := r.workload(t, workload)
	spec := m.Spec.Template.Spec
	c := spec.Containers[0]
	p := &pod{
		container: c,
		ports:     make(map[string]string),
		dirs:      make(map[string]string),
		preStop:   time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second,
	}
	p.grace = time.Duration(spec.TerminationGracePeriodSeconds)*time.Second - p.preStop
	for _, port := range c.Ports {
		p.ports[port.Name] = freeport.Addr()
		replacements = append(replacements, fmt.Sprintf("=:%d\n", port.ContainerPort), "="+p.ports[port.Name]+"\n")
	}
	given := strings.NewReplacer(replacements...)
	for _, v := range spec.Volumes {
		p.dirs[v.Name] = r.mount(t, v, given)
	}
	for _, claim := range m.Spec.VolumeClaimTemplates {
		p.dirs[claim.Metadata.Name] = emptyVolume(t)
	}
	paths := make([]string, 0, 2*len(c.VolumeMounts))
	for _, mount := range c.VolumeMounts {
		require.Contains(t, p.dirs, mount.Name)
		paths = append(paths, mount.MountPath+"/", p.dirs[mount.Name]+"/")
	}
	mounted := strings.NewReplacer(paths...)
	for _, arg := range c.Args {
		p.args = append(p.args, strings.TrimSuffix(given.Replace(mounted.Replace(arg)+"\n"), "\n"))
	}
	for _, e := range c.Env {
		if ref := e.ValueFrom.SecretKeyRef; ref.Name != "" {
			require.Contains(t, r.secrets[ref.Name], ref.Key, "the key of the Secret %s", ref.Name)
			e.Value = r.secrets[ref.Name][ref.Key]
		}
		p.env = append(p.env, e.Name+"="+given.Replace(e.Value))
	}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.kill()
		}
		if t.Failed() {
			t.Logf("log of a pod of %s:\n%s", workload, p.log.tail(8<<10))
		}
	})
	return p
}

// mount returns a directory with what is in a volume, as fsGroup makes it.
func (r *release) mount(t *testing.T, v volume, given *strings.Replacer) string {
	t.Helper()
	dir := emptyVolume(t)
	content := maps.Clone(r.secrets[v.Secret.SecretName])
	switch {
	case v.Secret.SecretName != "":
		require.NotEmpty(t, content, "the Secret %s", v.Secret.SecretName)
		if len(v.Secret.Items) > 0 {
			chosen := make(files)
			for _, item := range v.Secret.Items {
				require.Contains(t, content, item.Key, "the Secret %s", v.Secret.SecretName)
				chosen[item.Path] = content[item.Key]
			}
			content = chosen
		}
	case v.ConfigMap.Name != "":
		content = maps.Clone(r.maps[v.ConfigMap.Name])
		require.NotEmpty(t, content, "the ConfigMap %s", v.ConfigMap.Name)
		for key, text := range content {
			content[key] = given.Replace(text)
		}
	}
	for name, text := range content {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o440))
	}
	return dir
}

// emptyVolume returns a directory as fsGroup makes it: the group writes.
func emptyVolume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o775|os.ModeSetgid))
	return dir
}

// start starts the process, with no environment but the pod's.
func (p *pod) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(binary, p.args...)
	p.cmd.Env = append([]string{"TMPDIR=" + p.dirs["tmp"]}, p.env...)
	p.cmd.Stderr = &p.log
	require.NoError(t, p.cmd.Start())
	exited := make(chan error, 1)
	p.exited = exited
	go func(cmd *exec.Cmd) { exited <- cmd.Wait() }(p.cmd)
}

// probe asks as the kubelet does, and returns the status; 0: there was no answer.
func (p *pod) probe(ctx context.Context, asked probe) int {
	scheme := strings.ToLower(asked.HTTPGet.Scheme)
	if scheme == "" {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+p.ports[asked.HTTPGet.Port]+asked.HTTPGet.Path, nil)
	if err != nil {
		return 0
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}).Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// waitReady waits until the probes have passed in the order in which the kubelet asks.
func (p *pod) waitReady(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for _, asked := range []probe{p.container.StartupProbe, p.container.ReadinessProbe, p.container.LivenessProbe} {
		require.Contains(t, p.ports, asked.HTTPGet.Port)
		for p.probe(t.Context(), asked) != http.StatusOK {
			select {
			case err := <-p.exited:
				p.cmd = nil
				require.FailNow(t, "the pod ended before it was ready", "%v\n%s", err, p.log.tail(4<<10))
			case <-time.After(20 * time.Millisecond):
			}
			require.True(t, time.Now().Before(deadline), "%s: not passed after 30 s", asked.HTTPGet.Path)
		}
	}
}

// stop ends the process as the kubelet does: after the sleep, by a signal, at the end of the
// grace period by force. It returns whether that was needed, and the time from the signal on.
func (p *pod) stop() (forced bool, took time.Duration) {
	time.Sleep(p.preStop)
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(p.grace):
		forced = true
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	p.cmd = nil
	return forced, time.Since(began)
}

func (p *pod) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
	p.cmd = nil
}
