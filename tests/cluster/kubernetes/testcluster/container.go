package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Restarts back off from firstRestart, doubling, to lastRestart: the kubelet's 10 s and 5 min would be a test's time.
const (
	firstRestart = 500 * time.Millisecond
	lastRestart  = 10 * time.Second
)

type container struct {
	pod  *pod
	spec corev1.Container

	mu       sync.Mutex
	process  *os.Process     // while it runs
	ended    <-chan struct{} // closed when it has
	ready    bool
	began    metav1.Time
	restarts int32
	exit     *corev1.ContainerStateTerminated // of the last process
	waiting  *corev1.ContainerStateWaiting    // why there is no process
}

// loop runs the container for as long as its Pod's restart policy says.
func (c *container) loop() {
	back := firstRestart
	for {
		ran := c.runOnce()
		c.mu.Lock()
		succeeded := ran && c.exit.ExitCode == 0
		c.mu.Unlock()
		policy := c.pod.object.Load().Spec.RestartPolicy
		if c.pod.stopped() || ran && (policy == corev1.RestartPolicyNever || policy == corev1.RestartPolicyOnFailure && succeeded) {
			return
		}
		c.mu.Lock()
		pulled := c.waiting == nil || c.waiting.Reason != "ErrImagePull"
		c.mu.Unlock()
		if !ran && !pulled {
			// A kubelet says ErrImagePull at each try, and ImagePullBackOff in between.
			if c.pod.sleep(firstRestart) {
				return
			}
			c.wait(&corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "back-off " + back.String() + " pulling image"})
		}
		c.mu.Lock()
		if ran {
			c.waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off " + back.String() + " restarting failed container"}
		}
		c.mu.Unlock()
		c.pod.writeStatus()
		if c.pod.sleep(back) {
			return
		}
		back = min(2*back, lastRestart)
		if ran {
			c.mu.Lock()
			c.restarts++
			c.mu.Unlock()
		}
	}
}

// untilDone runs an init container until it succeeds; false if the Pod ends before.
func (c *container) untilDone() bool {
	for back := firstRestart; ; back = min(2*back, lastRestart) {
		if c.runOnce() && c.exit.ExitCode == 0 {
			return true
		}
		if c.pod.object.Load().Spec.RestartPolicy == corev1.RestartPolicyNever || c.pod.sleep(back) {
			return false
		}
	}
}

// runOnce runs the process to its end; false if there was nothing to run, and then `waiting` says why.
func (c *container) runOnce() bool {
	p := c.pod
	root, waiting := c.root()
	if waiting != nil {
		c.wait(waiting)
		return false
	}
	description, err := json.Marshal(root)
	if err != nil {
		c.wait(&corev1.ContainerStateWaiting{Reason: "CreateContainerError", Message: err.Error()})
		return false
	}
	out, err := os.OpenFile(filepath.Join(p.dir, c.spec.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		c.wait(&corev1.ContainerStateWaiting{Reason: "CreateContainerError", Message: err.Error()})
		return false
	}
	defer out.Close()
	self, err := os.Executable()
	if err != nil {
		c.wait(&corev1.ContainerStateWaiting{Reason: "CreateContainerError", Message: err.Error()})
		return false
	}
	cmd := exec.Command(self, "container", string(description))
	cmd.Env = root.Env
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{p.space}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS, Setpgid: true,
	}
	c.mu.Lock()
	if p.stopped() {
		c.mu.Unlock()
		return false
	}
	if err := cmd.Start(); err != nil {
		c.mu.Unlock()
		c.wait(&corev1.ContainerStateWaiting{Reason: "RunContainerError", Message: err.Error()})
		return false
	}
	ended := make(chan struct{})
	c.process, c.ended, c.began, c.waiting, c.ready = cmd.Process, ended, metav1.Now(), nil, false
	c.mu.Unlock()
	c.watch(ended)
	p.writeStatus()
	cmd.Wait()
	exit := &corev1.ContainerStateTerminated{
		ExitCode: int32(exitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus))), Reason: "Completed", StartedAt: c.began, FinishedAt: metav1.Now(),
	}
	if exit.ExitCode != 0 {
		exit.Reason = "Error"
	}
	c.mu.Lock()
	c.process, c.ready, c.exit = nil, false, exit
	close(ended)
	c.mu.Unlock()
	p.writeStatus()
	return true
}

func (c *container) wait(why *corev1.ContainerStateWaiting) {
	c.mu.Lock()
	c.waiting = why
	c.mu.Unlock()
	c.pod.log("%s: %s: %s", c.spec.Name, why.Reason, why.Message)
	c.pod.writeStatus()
}

// setReady is for the process that `ended` is of: the outcome of a probe may come when the next one runs.
func (c *container) setReady(ended <-chan struct{}, ready bool) {
	c.mu.Lock()
	changed := c.process != nil && c.ended == ended && c.ready != ready
	if changed {
		c.ready = ready
	}
	c.mu.Unlock()
	if changed {
		c.pod.writeStatus()
	}
}

// end lets the process leave: preStop, SIGTERM, and at the deadline SIGKILL.
func (c *container) end(deadline time.Time) {
	c.mu.Lock()
	process, ended := c.process, c.ended
	c.mu.Unlock()
	if process == nil {
		return
	}
	if l := c.spec.Lifecycle; l != nil && l.PreStop != nil {
		left := time.Until(deadline)
		switch h := l.PreStop; {
		case h.HTTPGet != nil:
			c.httpGet(h.HTTPGet, left)
		case h.Exec != nil:
			c.execute(process.Pid, h.Exec.Command, left)
		case h.Sleep != nil:
			select {
			case <-ended:
			case <-time.After(min(left, time.Duration(h.Sleep.Seconds)*time.Second)):
			}
		}
	}
	process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
		return
	case <-time.After(time.Until(deadline)):
	}
	process.Kill()
	<-ended
}

func (c *container) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		c.process.Kill()
	}
}

func (c *container) status() corev1.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	started := c.process != nil
	s := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, ImageID: c.spec.Image, ContainerID: "process://" + c.pod.id + "/" + c.spec.Name,
		RestartCount: c.restarts, Ready: c.ready, Started: &started,
	}
	switch {
	case c.process != nil:
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: c.began}
	case c.waiting != nil:
		s.State.Waiting = c.waiting
	case c.exit != nil:
		s.State.Terminated = c.exit
		return s
	default:
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	}
	if c.exit != nil {
		s.LastTerminationState.Terminated = c.exit
	}
	return s
}
