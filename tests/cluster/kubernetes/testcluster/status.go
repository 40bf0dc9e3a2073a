package main

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// writeStatus writes what the containers are in, read when it is written: the last of several calls tells the truth.
func (p *pod) writeStatus() {
	p.statusMu.Lock()
	defer p.statusMu.Unlock()
	s := statusPatch{PodStatus: p.status()}
	if p.message != "" {
		s.Message = &p.message
	}
	for _, c := range s.PodStatus.Conditions {
		s.Conditions = append(s.Conditions, conditionPatch{c, c.Reason, c.Message})
	}
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.uid}, "status": s})
	if err != nil {
		p.log("status: %v", err)
		return
	}
	_, err = p.node.client.CoreV1().Pods(p.namespace).Patch(p.node.ctx, p.name, types.StrategicMergePatchType, b, metav1.PatchOptions{}, "status")
	if err != nil && !gone(err) {
		p.log("status: %v", err)
	}
}

// gone: the object is no more, or another one has its name.
func gone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }

// statusPatch says also that there is no message or reason any more: what a patch leaves out stays.
type statusPatch struct {
	corev1.PodStatus
	Message    *string          `json:"message"`
	Conditions []conditionPatch `json:"conditions"`
}

type conditionPatch struct {
	corev1.PodCondition
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (p *pod) status() corev1.PodStatus {
	o := p.object.Load()
	s := corev1.PodStatus{Phase: corev1.PodPending, HostIP: nodeIP, HostIPs: []corev1.HostIP{{IP: nodeIP}}, StartTime: &p.began}
	if p.networked {
		s.PodIP, s.PodIPs = p.ip, p.ips()
	}
	initialized, ready := true, true
	var running, failed int
	ended := 0
	for _, c := range p.inits {
		cs := c.status()
		cs.Ready = cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0
		initialized = initialized && cs.Ready
		s.InitContainerStatuses = append(s.InitContainerStatuses, cs)
	}
	for _, c := range p.containers {
		cs := c.status()
		ready = ready && cs.Ready
		if cs.State.Running != nil {
			running++
		}
		if t := cs.State.Terminated; t != nil {
			ended++
			if t.ExitCode != 0 {
				failed++
			}
		}
		s.ContainerStatuses = append(s.ContainerStatuses, cs)
	}
	switch final := o.Spec.RestartPolicy != corev1.RestartPolicyAlways || o.DeletionTimestamp != nil; {
	case final && ended == len(p.containers) && failed > 0:
		s.Phase = corev1.PodFailed
	case final && ended == len(p.containers):
		s.Phase = corev1.PodSucceeded
	case running > 0 || initialized && restarted(s.ContainerStatuses):
		s.Phase = corev1.PodRunning
	}
	ready = ready && initialized
	for _, c := range []struct {
		kind corev1.PodConditionType
		is   bool
	}{
		{corev1.PodReadyToStartContainers, p.networked}, {corev1.PodInitialized, initialized}, {corev1.ContainersReady, ready},
		{corev1.PodReady, ready}, {corev1.PodScheduled, true},
	} {
		s.Conditions = append(s.Conditions, condition(o, c.kind, c.is))
	}
	return s
}

func restarted(all []corev1.ContainerStatus) bool {
	for _, c := range all {
		if c.RestartCount > 0 || c.LastTerminationState.Terminated != nil {
			return true
		}
	}
	return false
}

// condition keeps the time of the last transition of one that has not changed.
func condition(o *corev1.Pod, kind corev1.PodConditionType, is bool) corev1.PodCondition {
	c := corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}
	if !is {
		c.Status = corev1.ConditionFalse
		if kind == corev1.PodReady || kind == corev1.ContainersReady {
			c.Reason, c.Message = "ContainersNotReady", "containers with unready status"
		}
	}
	for _, old := range o.Status.Conditions {
		if old.Type == kind && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	return c
}
