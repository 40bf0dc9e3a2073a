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

// watch probes the process that has just started until it has ended. A startup probe is waited for without end.
func (c *container) watch(ended <-chan struct{}) {
	go func() {
		if s := c.spec.StartupProbe; s != nil {
			for wait := seconds(s.InitialDelaySeconds); ; wait = min(seconds(max(s.PeriodSeconds, 1)), eagerProbe) {
				if over(ended, wait) {
					return
				}
				if c.probe(s) == nil {
					break
				}
			}
		}
		if l := c.spec.LivenessProbe; l != nil {
			go c.repeat(l, seconds(max(l.PeriodSeconds, 1)), ended, func(alive bool) {
				if !alive {
					c.pod.log("%s: not alive: killed", c.spec.Name)
					c.kill()
				}
			})
		}
		if r := c.spec.ReadinessProbe; r != nil {
			c.repeat(r, eagerProbe, ended, func(ready bool) { c.setReady(ended, ready) })
		} else {
			c.setReady(ended, true)
		}
	}()
}

// repeat tells each outcome that is one by the thresholds. `first` is the period until the first success.
func (c *container) repeat(p *corev1.Probe, first time.Duration, ended <-chan struct{}, tell func(ok bool)) {
	var successes, failures int32
	period := seconds(max(p.PeriodSeconds, 1))
	for wait := seconds(p.InitialDelaySeconds); !over(ended, wait); {
		if c.probe(p) == nil {
			failures = 0
			first = period
			if successes++; successes >= max(p.SuccessThreshold, 1) {
				tell(true)
			}
		} else {
			successes = 0
			if failures++; failures >= max(p.FailureThreshold, 1) {
				tell(false)
			}
		}
		wait = min(first, period)
	}
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

func over(ended <-chan struct{}, wait time.Duration) bool {
	select {
	case <-ended:
		return true
	case <-time.After(wait):
		return false
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
