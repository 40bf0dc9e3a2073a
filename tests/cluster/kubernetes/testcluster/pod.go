package main

import (
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod runs one Pod from its binding to its end.
type pod struct {
	node                *node
	uid                 types.UID
	namespace, name, id string
	ip                  string
	dir                 string // logs, volumes, mount points
	began               metav1.Time
	object              atomic.Pointer[corev1.Pod] // as last seen
	stop                chan struct{}              // closed when the Pod is to end
	stopOnce            sync.Once
	space               *os.File // network namespace
	inits, containers   []*container
	statusMu            sync.Mutex // one writer of the status
	message             string     // under statusMu
	networked           bool       // under statusMu
}

func newPod(n *node, o *corev1.Pod, ip string) *pod {
	p := &pod{
		node: n, uid: o.UID, namespace: o.Namespace, name: o.Name, ip: ip, began: metav1.Now(), stop: make(chan struct{}),
		id: strings.ReplaceAll(string(o.UID), "-", "")[:12], // an interface's name has 15 bytes
	}
	p.dir = filepath.Join(n.state, o.Namespace+"_"+o.Name+"_"+p.id)
	p.object.Store(o)
	for _, c := range o.Spec.InitContainers {
		p.inits = append(p.inits, &container{pod: p, spec: c})
	}
	for _, c := range o.Spec.Containers {
		p.containers = append(p.containers, &container{pod: p, spec: c})
	}
	return p
}

func (p *pod) log(format string, a ...any) {
	log.Printf("%s/%s: "+format, append([]any{p.namespace, p.name}, a...)...)
}

func (p *pod) run() {
	if p.object.Load().DeletionTimestamp == nil && p.prepare() {
		for _, c := range p.containers {
			go c.loop()
		}
		p.writeStatus()
	}
	<-p.stop
	p.end()
}

// prepare is all that comes before the containers; false if the Pod has been deleted meanwhile or cannot run.
func (p *pod) prepare() bool {
	err := os.MkdirAll(p.dir, 0o755)
	if err == nil {
		err = p.connect()
	}
	if err == nil {
		p.statusMu.Lock()
		p.networked = true
		p.statusMu.Unlock()
		err = p.volumes()
	}
	if err != nil {
		p.say(err.Error())
		return false
	}
	for _, c := range p.inits {
		if !c.untilDone() {
			return false
		}
	}
	return true
}

// say puts why nothing runs yet into the Pod's status.
func (p *pod) say(why string) {
	p.statusMu.Lock()
	changed := p.message != why
	p.message = why
	p.statusMu.Unlock()
	if changed {
		if why != "" {
			p.log("%s", why)
		}
		p.writeStatus()
	}
}

// end stops the containers within the grace period and takes the Pod's object away.
func (p *pod) end() {
	o := p.object.Load()
	grace := 30 * time.Second
	if s := o.DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	deadline := time.Now().Add(grace)
	var all sync.WaitGroup
	for _, c := range append(p.inits, p.containers...) {
		all.Add(1)
		go func() { defer all.Done(); c.end(deadline) }()
	}
	all.Wait()
	p.disconnect()
	os.RemoveAll(filepath.Join(p.dir, "volumes"))
	p.writeStatus()
	now := int64(0)
	err := p.node.client.CoreV1().Pods(p.namespace).Delete(p.node.ctx, p.name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.uid},
	})
	if err != nil && !gone(err) {
		p.log("delete: %v", err)
	}
	p.node.mu.Lock()
	delete(p.node.pods, p.uid)
	delete(p.node.addresses, p.ip)
	p.node.mu.Unlock()
}

func (p *pod) kill() {
	for _, c := range append(p.inits, p.containers...) {
		c.kill()
	}
}

// stopped says whether the Pod is to end; `sleep` whether it was, before the time was over.
func (p *pod) stopped() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

func (p *pod) sleep(d time.Duration) (stopped bool) {
	select {
	case <-p.stop:
		return true
	case <-time.After(d):
		return false
	}
}
