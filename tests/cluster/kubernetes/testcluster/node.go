package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// node is the scheduler, the kubelet, the container runtime, cluster DNS and the cloud's load balancers, each as small as
// tests of a gateway allow.
type node struct {
	state, images string // directories: of Pods, of programs by image name
	dualStack     bool
	labels        labels.Set

	ctx      context.Context
	client   *kubernetes.Clientset
	services cache.SharedIndexInformer
	slices   cache.SharedIndexInformer

	mu            sync.Mutex
	pods          map[types.UID]*pod
	addresses     map[string]bool // of Pods, in use
	nextAddress   int
	loadBalancers map[string]types.UID // by address
}

const bySlice = "service" // index of EndpointSlices by "namespace/service"

func nodeMain(args []string) {
	n := &node{pods: map[types.UID]*pod{}, addresses: map[string]bool{}, nextAddress: 2, loadBalancers: map[string]types.UID{}}
	f := flag.NewFlagSet("node", flag.ExitOnError)
	kubeconfig := f.String("kubeconfig", "", "")
	f.StringVar(&n.state, "state", "", "directory for the logs and volumes of Pods")
	f.StringVar(&n.images, "images", "", "directory with one program per image")
	f.BoolVar(&n.dualStack, "dual-stack", false, "")
	f.Parse(args)
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	config.QPS, config.Burst = 500, 1000
	config.ContentType = "application/vnd.kubernetes.protobuf"
	if n.client, err = kubernetes.NewForConfig(config); err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	n.ctx = ctx
	n.labels = labels.Set{"kubernetes.io/hostname": nodeName, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}

	factory := informers.NewSharedInformerFactory(n.client, 0)
	pods := factory.Core().V1().Pods().Informer()
	n.services = factory.Core().V1().Services().Informer()
	n.slices = factory.Discovery().V1().EndpointSlices().Informer()
	n.slices.AddIndexers(cache.Indexers{bySlice: func(o any) ([]string, error) {
		s := o.(*discoveryv1.EndpointSlice)
		return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
	}})
	pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { n.podChanged(o.(*corev1.Pod)) },
		UpdateFunc: func(_, o any) { n.podChanged(o.(*corev1.Pod)) },
		DeleteFunc: func(o any) {
			if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			if p, ok := o.(*corev1.Pod); ok {
				n.podGone(p)
			}
		},
	})
	n.services.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { n.serviceChanged(o.(*corev1.Service)) },
		UpdateFunc: func(_, o any) { n.serviceChanged(o.(*corev1.Service)) },
	})
	if err := n.remember(); err != nil {
		log.Fatal(err)
	}
	if err := n.listenDNS(); err != nil {
		log.Fatal(err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := n.register(); err != nil {
		log.Fatal(err)
	}
	log.Print("ready")
	<-ctx.Done()
}

// remember is for a node that was killed: what has an address keeps it, and nothing else gets it.
func (n *node) remember() error {
	pods, err := n.client.CoreV1().Pods("").List(n.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		n.addresses[p.Status.PodIP] = true
	}
	services, err := n.client.CoreV1().Services("").List(n.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range services.Items {
		for _, i := range s.Status.LoadBalancer.Ingress {
			n.loadBalancers[i.IP] = s.UID
		}
	}
	return nil
}

func (n *node) register() error {
	nodes := n.client.CoreV1().Nodes()
	me := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: n.labels}}
	if _, err := nodes.Create(n.ctx, me, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	me, err := nodes.Get(n.ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	me.Status.Capacity = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1000"), corev1.ResourceMemory: resource.MustParse("1000Gi"),
		corev1.ResourcePods: resource.MustParse("10000"), corev1.ResourceEphemeralStorage: resource.MustParse("1000Gi"),
	}
	me.Status.Allocatable = me.Status.Capacity
	me.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeIP}, {Type: corev1.NodeHostName, Address: nodeName}}
	if n.dualStack {
		me.Status.Addresses = append(me.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: nodeIP6})
	}
	now := metav1.Now()
	me.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "TestNode", LastHeartbeatTime: now, LastTransitionTime: now}}
	_, err = nodes.UpdateStatus(n.ctx, me, metav1.UpdateOptions{})
	return err
}

func (n *node) podChanged(o *corev1.Pod) {
	if o.Spec.NodeName == "" {
		if o.DeletionTimestamp == nil {
			go n.schedule(o)
		}
		return
	}
	if o.Spec.NodeName != nodeName {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.pods[o.UID]
	if p == nil {
		if o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
			return
		}
		ip := o.Status.PodIP // of before a restart of the node
		if ip == "" {
			ip = n.takeAddress()
		}
		p = newPod(n, o, ip)
		n.pods[o.UID] = p
		go p.run()
	}
	p.object.Store(o)
	if o.DeletionTimestamp != nil {
		p.stopOnce.Do(func() { close(p.stop) })
	}
}

// podGone is for a Pod deleted with no grace at all: what runs is killed.
func (n *node) podGone(o *corev1.Pod) {
	n.mu.Lock()
	p := n.pods[o.UID]
	n.mu.Unlock()
	if p != nil {
		p.stopOnce.Do(func() { close(p.stop) })
		p.kill()
	}
}

// schedule binds a Pod to the only node there is, unless its nodeSelector names another: such a Pod stays Unschedulable.
func (n *node) schedule(o *corev1.Pod) {
	pods := n.client.CoreV1().Pods(o.Namespace)
	if labels.SelectorFromSet(o.Spec.NodeSelector).Matches(n.labels) {
		b := &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, UID: o.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: nodeName},
		}
		if err := pods.Bind(n.ctx, b, metav1.CreateOptions{}); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			log.Printf("bind %s/%s: %v", o.Namespace, o.Name, err)
		}
		return
	}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return
		}
	}
	o = o.DeepCopy()
	o.Status.Conditions = append(o.Status.Conditions, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, LastTransitionTime: metav1.Now(),
		Message: "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
	})
	if _, err := pods.UpdateStatus(n.ctx, o, metav1.UpdateOptions{}); err != nil {
		log.Printf("unschedulable %s/%s: %v", o.Namespace, o.Name, err)
	}
}

// takeAddress deals addresses out in turn, so that one is not soon used again by another Pod.
func (n *node) takeAddress() string {
	base := net.ParseIP(nodeIP).To4()
	for {
		i := n.nextAddress
		if n.nextAddress++; n.nextAddress > 60000 {
			n.nextAddress = 2
		}
		if i%256 == 0 || i%256 == 255 {
			continue
		}
		a := fmt.Sprintf("%d.%d.%d.%d", base[0], base[1], i/256, i%256)
		if !n.addresses[a] {
			n.addresses[a] = true
			return a
		}
	}
}

// serviceChanged gives a Service of type LoadBalancer an address, which kube-proxy then serves as it does ClusterIPs.
func (n *node) serviceChanged(s *corev1.Service) {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || len(s.Status.LoadBalancer.Ingress) > 0 || s.DeletionTimestamp != nil {
		return
	}
	n.mu.Lock()
	var ip string
	for i := 0; ; i++ {
		ip = fmt.Sprintf("10.78.%d.%d", i/250, i%250+1)
		if owner, used := n.loadBalancers[ip]; !used || owner == s.UID {
			break
		}
	}
	n.loadBalancers[ip] = s.UID
	n.mu.Unlock()
	go func() {
		s, vip := s.DeepCopy(), corev1.LoadBalancerIPModeVIP
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip, IPMode: &vip}}
		for {
			_, err := n.client.CoreV1().Services(s.Namespace).UpdateStatus(n.ctx, s, metav1.UpdateOptions{})
			if err == nil || apierrors.IsConflict(err) || apierrors.IsNotFound(err) { // after a conflict comes another event
				return
			}
			log.Printf("load balancer of %s/%s: %v", s.Namespace, s.Name, err)
			select {
			case <-n.ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
}

// program is the file of an image: registry/a/b:tag is a/b below the directory of images if that exists, else b.
func (n *node) program(image string) (string, bool) {
	path := imagePath(image)
	for _, f := range []string{path, filepath.Base(path)} {
		f, err := filepath.EvalSymlinks(filepath.Join(n.images, f))
		if err != nil {
			continue
		}
		if st, err := os.Stat(f); err == nil && !st.IsDir() {
			return f, true
		}
	}
	return "", false
}

// imagePath is an image's name without registry, tag and digest.
func imagePath(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	if _, path, ok := strings.Cut(image, "/"); ok {
		return path
	}
	return image
}
