// stub: the least ingress that passes Knative's conformance suite. It is the control in every comparison: what it fails too is
// not the gateway's fault. One replica, no drain, no acknowledgements, no care for speed.
package main

import (
	"context"
	"flag"
	"log"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/networking/pkg/client/clientset/versioned"
	knative "knative.dev/networking/pkg/client/informers/externalversions"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "default: that of the Pod")
	class := flag.String("class", "stub.ingress.networking.knative.dev", "the `class` of the Ingresses that are ours")
	public := flag.String("public", "stub.stub-system.svc.cluster.local", "`name` of the Service that leads to :8080 and :8443")
	private := flag.String("private", "stub-internal.stub-system.svc.cluster.local", "`name` of the Service that leads to :8081")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	config.QPS, config.Burst = 500, 1000
	client := versioned.NewForConfigOrDie(config)
	core := informers.NewSharedInformerFactory(kubernetes.NewForConfigOrDie(config), 0)
	net := knative.NewSharedInformerFactory(client, 0)
	world := &world{
		ingresses: net.Networking().V1alpha1().Ingresses().Lister(), services: core.Core().V1().Services().Lister(),
		slices: core.Discovery().V1().EndpointSlices().Lister(), secrets: core.Core().V1().Secrets().Lister(),
		served: map[types.UID]*v1alpha1.Ingress{},
	}
	dirty := make(chan struct{}, 1)
	poke := func() {
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	changed := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { poke() }, UpdateFunc: func(_, _ any) { poke() }, DeleteFunc: func(any) { poke() }}
	for _, i := range []cache.SharedIndexInformer{
		net.Networking().V1alpha1().Ingresses().Informer(), core.Core().V1().Services().Informer(),
		core.Discovery().V1().EndpointSlices().Informer(), core.Core().V1().Secrets().Informer(),
	} {
		i.AddEventHandler(changed)
	}
	ctx := context.Background()
	core.Start(ctx.Done())
	net.Start(ctx.Done())
	core.WaitForCacheSync(ctx.Done())
	net.WaitForCacheSync(ctx.Done())
	go serve(":8080", exposure{public: true})
	go serve(":8443", exposure{public: true, tls: true})
	go serve(":8081", exposure{})
	poke()
	for range dirty {
		time.Sleep(10 * time.Millisecond) // one table for a burst of events
		t, whole := world.build(*class)
		current.Store(t)
		for _, ing := range whole {
			// A class is no part of the generation: the status may be the one of another ingress.
			if ing.IsReady() && ing.Status.ObservedGeneration == ing.Generation && isAt(ing.Status.PrivateLoadBalancer, *private) {
				continue
			}
			ing = ing.DeepCopy()
			ing.Status.InitializeConditions()
			ing.Status.MarkNetworkConfigured()
			ing.Status.MarkLoadBalancerReady(
				[]v1alpha1.LoadBalancerIngressStatus{{DomainInternal: *public}}, []v1alpha1.LoadBalancerIngressStatus{{DomainInternal: *private}})
			ing.Status.ObservedGeneration = ing.Generation
			if _, err := client.NetworkingV1alpha1().Ingresses(ing.Namespace).UpdateStatus(ctx, ing, metav1.UpdateOptions{}); err != nil {
				log.Print(err) // the object has changed: its event comes
			}
		}
	}
}

func (w *world) ours(class string) (ours []*v1alpha1.Ingress) {
	all, _ := w.ingresses.List(labels.Everything())
	for _, ing := range all {
		if ing.Annotations[networking.IngressClassAnnotationKey] == class {
			ours = append(ours, ing)
		}
	}
	return ours
}

// isAt says whether a status has this one address.
func isAt(lb *v1alpha1.LoadBalancerStatus, name string) bool {
	return lb != nil && len(lb.Ingress) == 1 && lb.Ingress[0].DomainInternal == name
}
