package main

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// env is the environment of the container's process. An error is one of the configuration: the Pod waits until it is mended.
func (c *container) env(o *corev1.Pod) (map[string]string, error) {
	p := c.pod
	env := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/ko-app", "HOME": "/root", "HOSTNAME": o.Name,
		"KUBERNETES_SERVICE_HOST": apiServiceIP, "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
	}
	for _, f := range c.spec.EnvFrom {
		var data map[string][]byte
		var err error
		switch {
		case f.ConfigMapRef != nil:
			data, err = p.configMap(f.ConfigMapRef.Name, f.ConfigMapRef.Optional)
		case f.SecretRef != nil:
			data, err = p.secret(f.SecretRef.Name, f.SecretRef.Optional)
		}
		if err != nil {
			return nil, err
		}
		for k, v := range data {
			env[f.Prefix+k] = string(v)
		}
	}
	for _, e := range c.spec.Env {
		if e.ValueFrom == nil {
			env[e.Name] = expand(e.Value, env)
			continue
		}
		v, ok, err := p.envValue(o, e.ValueFrom)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		if ok {
			env[e.Name] = v
		}
	}
	return env, nil
}

// envValue is not there, without an error, where what it names is optional.
func (p *pod) envValue(o *corev1.Pod, from *corev1.EnvVarSource) (value string, ok bool, err error) {
	var data map[string][]byte
	var key string
	var optional *bool
	switch {
	case from.FieldRef != nil:
		return p.field(o, from.FieldRef.FieldPath), true, nil
	case from.ResourceFieldRef != nil:
		return "1", true, nil
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		key, optional = r.Key, r.Optional
		data, err = p.configMap(r.Name, r.Optional)
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		key, optional = r.Key, r.Optional
		data, err = p.secret(r.Name, r.Optional)
	}
	if err != nil {
		return "", false, err
	}
	v, ok := data[key]
	if !ok && (optional == nil || !*optional) {
		return "", false, fmt.Errorf("no key %q", key)
	}
	return string(v), ok, nil
}

func (p *pod) secret(name string, optional *bool) (map[string][]byte, error) {
	s, err := p.node.client.CoreV1().Secrets(p.namespace).Get(p.node.ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, unless(optional, err)
	}
	return s.Data, nil
}

func (p *pod) configMap(name string, optional *bool) (map[string][]byte, error) {
	m, err := p.node.client.CoreV1().ConfigMaps(p.namespace).Get(p.node.ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, unless(optional, err)
	}
	data := map[string][]byte{}
	for k, v := range m.Data {
		data[k] = []byte(v)
	}
	for k, v := range m.BinaryData {
		data[k] = v
	}
	return data, nil
}

func unless(optional *bool, err error) error {
	if optional != nil && *optional && gone(err) {
		return nil
	}
	return err
}

// field is a value of the downward API.
func (p *pod) field(o *corev1.Pod, path string) string {
	switch path {
	case "metadata.name":
		return o.Name
	case "metadata.namespace":
		return o.Namespace
	case "metadata.uid":
		return string(o.UID)
	case "spec.nodeName":
		return nodeName
	case "spec.serviceAccountName":
		return o.Spec.ServiceAccountName
	case "status.hostIP", "status.hostIPs":
		return nodeIP
	case "status.podIP":
		return p.ip
	case "status.podIPs":
		var all []string
		for _, i := range p.ips() {
			all = append(all, i.IP)
		}
		return strings.Join(all, ",")
	}
	for prefix, m := range map[string]map[string]string{"metadata.labels": o.Labels, "metadata.annotations": o.Annotations} {
		if key, ok := strings.CutPrefix(path, prefix+"['"); ok {
			return m[strings.TrimSuffix(key, "']")]
		}
		if path == prefix {
			var b strings.Builder
			for k, v := range m {
				fmt.Fprintf(&b, "%s=%q\n", k, v)
			}
			return b.String()
		}
	}
	return ""
}

// expand puts variables for $(NAME); unknown ones stay as they are, and $$ is one $.
func expand(s string, env map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '$' && i+1 < len(s) {
			if s[i+1] == '$' {
				b.WriteByte('$')
				i++
				continue
			}
			if end := strings.IndexByte(s[i:], ')'); s[i+1] == '(' && end > 0 {
				if v, ok := env[s[i+2:i+end]]; ok {
					b.WriteString(v)
					i += end
					continue
				}
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func expandAll(words []string, env map[string]string) []string {
	var out []string
	for _, w := range words {
		out = append(out, expand(w, env))
	}
	return out
}
