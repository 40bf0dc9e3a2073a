package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volumes writes what the Pod mounts, once: later changes of a Secret or ConfigMap are not followed. It waits for those that
// are not there yet, and returns an error only when the Pod is to end.
func (p *pod) volumes() error {
	o := p.object.Load()
	for _, v := range o.Spec.Volumes {
		dir := filepath.Join(p.dir, "volumes", v.Name)
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		os.Chmod(dir, 0o777) // whatever the umask: any user may write to an emptyDir
		for {
			err := p.fill(o, dir, v)
			if err == nil {
				break
			}
			err = fmt.Errorf("volume %s: %w", v.Name, err)
			p.say(err.Error())
			if p.sleep(100 * time.Millisecond) {
				return err
			}
		}
	}
	p.say("")
	return nil
}

func (p *pod) fill(o *corev1.Pod, dir string, v corev1.Volume) error {
	switch {
	case v.EmptyDir != nil:
		return nil
	case v.Secret != nil:
		data, err := p.secret(v.Secret.SecretName, v.Secret.Optional)
		return write(dir, data, v.Secret.Items, err)
	case v.ConfigMap != nil:
		data, err := p.configMap(v.ConfigMap.Name, v.ConfigMap.Optional)
		return write(dir, data, v.ConfigMap.Items, err)
	case v.DownwardAPI != nil:
		return p.writeFields(o, dir, v.DownwardAPI.Items)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if err := p.project(o, dir, s); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("of a kind that the node does not have")
}

func (p *pod) project(o *corev1.Pod, dir string, s corev1.VolumeProjection) error {
	switch {
	case s.ServiceAccountToken != nil:
		ask := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
			ExpirationSeconds: s.ServiceAccountToken.ExpirationSeconds,
			BoundObjectRef:    &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: o.Name, UID: o.UID},
		}}
		if a := s.ServiceAccountToken.Audience; a != "" {
			ask.Spec.Audiences = []string{a}
		}
		t, err := p.node.client.CoreV1().ServiceAccounts(p.namespace).CreateToken(p.node.ctx, o.Spec.ServiceAccountName, ask, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		return write(dir, map[string][]byte{s.ServiceAccountToken.Path: []byte(t.Status.Token)}, nil, nil)
	case s.Secret != nil:
		data, err := p.secret(s.Secret.Name, s.Secret.Optional)
		return write(dir, data, s.Secret.Items, err)
	case s.ConfigMap != nil:
		data, err := p.configMap(s.ConfigMap.Name, s.ConfigMap.Optional)
		return write(dir, data, s.ConfigMap.Items, err)
	case s.DownwardAPI != nil:
		return p.writeFields(o, dir, s.DownwardAPI.Items)
	}
	return nil
}

func (p *pod) writeFields(o *corev1.Pod, dir string, items []corev1.DownwardAPIVolumeFile) error {
	data := map[string][]byte{}
	for _, i := range items {
		if i.FieldRef != nil {
			data[i.Path] = []byte(p.field(o, i.FieldRef.FieldPath))
		}
	}
	return write(dir, data, nil, nil)
}

func write(dir string, data map[string][]byte, items []corev1.KeyToPath, err error) error {
	if err != nil {
		return err
	}
	if items != nil {
		chosen := map[string][]byte{}
		for _, i := range items {
			chosen[i.Path] = data[i.Key]
		}
		data = chosen
	}
	for name, b := range data {
		f := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(f, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
