package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// eagerProbe is the period of a readiness or startup probe until its first success: what waits for a Pod would else wait for
// the second that is the shortest period of a probe. The kubelet has no such thing; a test of it is slower for nothing.
const eagerProbe = 100 * time.Millisecond

// watch probes the process that has just started until it has ended.
func (c *container) watch(ended <-chan struct{}) {
	alive := func(ok bool) {
		if !ok {
			c.pod.log("%s: not alive: killed", c.spec.Name)
			c.kill()
		}
	}
	go func() {
		if s := c.spec.StartupProbe; s != nil {
			started := make(chan struct{})
			go c.repeat(s, eagerProbe, ended, func(ok bool) {
				if alive(ok); ok {
					select {
					case <-started:
					default:
						close(started)
					}
				}
			})
			select {
			case <-ended:
				return
			case <-started:
			}
		}
		if l := c.spec.LivenessProbe; l != nil {
			go c.repeat(l, 0, ended, alive)
		}
		if r := c.spec.ReadinessProbe; r != nil {
			c.repeat(r, eagerProbe, ended, c.setReady)
		} else {
			c.setReady(true)
		}
	}()
}

// repeat tells the outcome each time that it is one by the thresholds.
func (c *container) repeat(p *corev1.Probe, eager time.Duration, ended <-chan struct{}, tell func(ok bool)) {
	pause := time.Duration(p.InitialDelaySeconds) * time.Second
	var successes, failures int32
	succeeded := false
	for {
		select {
		case <-ended:
			return
		case <-time.After(pause):
		}
		if c.probe(p) == nil {
			failures = 0
			if successes++; successes >= max(p.SuccessThreshold, 1) {
				succeeded = true
				tell(true)
			}
		} else {
			successes = 0
			// While a probe is made more often than it asks for, its failures do not count.
			if failures++; failures >= max(p.FailureThreshold, 1) && (succeeded || eager == 0) {
				tell(false)
			}
		}
		pause = time.Duration(max(p.PeriodSeconds, 1)) * time.Second
		if eager > 0 && !succeeded {
			pause = min(pause, eager)
		}
	}
}

func (c *container) probe(p *corev1.Probe) error {
	limit := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	switch {
	case p.HTTPGet != nil:
		return c.httpGet(p.HTTPGet, limit)
	case p.TCPSocket != nil:
		return c.dial(p.TCPSocket.Host, c.port(p.TCPSocket.Port), limit)
	case p.GRPC != nil: // that something listens is enough here
		return c.dial("", int(p.GRPC.Port), limit)
	case p.Exec != nil:
		c.mu.Lock()
		process := c.process
		c.mu.Unlock()
		if process == nil {
			return fmt.Errorf("not running")
		}
		return c.execute(process.Pid, p.Exec.Command, limit)
	}
	return nil
}

func (c *container) dial(host string, port int, limit time.Duration) error {
	if host == "" {
		host = c.pod.ip
	}
	k, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), limit)
	if err != nil {
		return err
	}
	return k.Close()
}

func (c *container) httpGet(g *corev1.HTTPGetAction, limit time.Duration) error {
	host, scheme := g.Host, strings.ToLower(string(g.Scheme))
	if host == "" {
		host = c.pod.ip
	}
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(c.port(g.Port))) + "/" + strings.TrimPrefix(g.Path, "/")
	q, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err
	}
	q.Header.Set("User-Agent", "kube-probe/1.34")
	for _, h := range g.HTTPHeaders {
		if strings.EqualFold(h.Name, "host") {
			q.Host = h.Value
		} else {
			q.Header.Set(h.Name, h.Value)
		}
	}
	// Like the kubelet: a connection for each probe, and no authority is asked about the certificate.
	client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	r, err := client.Do(q)
	if err != nil {
		return err
	}
	r.Body.Close()
	if r.StatusCode < 200 || r.StatusCode >= 400 {
		return fmt.Errorf("status %d", r.StatusCode)
	}
	return nil
}

func (c *container) port(p intstr.IntOrString) int {
	if p.Type == intstr.Int {
		return int(p.IntVal)
	}
	for _, cp := range c.spec.Ports {
		if cp.Name == p.StrVal {
			return int(cp.ContainerPort)
		}
	}
	n, _ := strconv.Atoi(p.StrVal)
	return n
}

// execute runs a command in the container's root and network.
func (c *container) execute(pid int, command []string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(c.pod.node.ctx, limit)
	defer cancel()
	env, err := c.env(c.pod.object.Load())
	if err != nil {
		return err
	}
	return onThread(c.pod.space, func() error {
		x := exec.CommandContext(ctx, "/usr/bin/env", append([]string{"--"}, command...)...)
		for k, v := range env {
			x.Env = append(x.Env, k+"="+v)
		}
		x.Dir = "/"
		x.SysProcAttr = &syscall.SysProcAttr{Chroot: "/proc/" + strconv.Itoa(pid) + "/root", Pdeathsig: syscall.SIGKILL}
		return x.Run()
	})
}
