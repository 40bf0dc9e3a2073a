package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	listers "knative.dev/networking/pkg/client/listers/networking/v1alpha1"
	"knative.dev/networking/pkg/ingress"
)

type world struct {
	ingresses listers.IngressLister
	services  corelisters.ServiceLister
	slices    discoverylisters.EndpointSliceLister
	secrets   corelisters.SecretLister
	served    map[types.UID]*v1alpha1.Ingress // the last version of each that was whole
}

type table struct {
	public, private map[string]*rule // by host
	certificates    map[string]*tls.Certificate
}

type rule struct {
	redirect bool // to https, where it came in clear text
	paths    []path
}

type path struct {
	v1alpha1.HTTPIngressPath
	to []backend // one for each split
}

type backend struct {
	addresses []string
	h2c       bool
}

// build makes the table, and says which Ingresses are whole: everything that they name is there.
//
// Watches of different kinds are not ordered: a new version that is not whole waits, and its predecessor is served.
func (w *world) build(class string) (*table, []*v1alpha1.Ingress) {
	t := &table{public: map[string]*rule{}, private: map[string]*rule{}, certificates: map[string]*tls.Certificate{}}
	served := map[types.UID]*v1alpha1.Ingress{}
	var whole []*v1alpha1.Ingress
	for _, ing := range w.ours(class) {
		scratch := &table{public: map[string]*rule{}, private: map[string]*rule{}, certificates: map[string]*tls.Certificate{}}
		ok := w.add(scratch, ing) == nil
		switch old := w.served[ing.UID]; {
		case ok:
			served[ing.UID] = ing
			whole = append(whole, ing)
		case old != nil:
			served[ing.UID] = old
		default:
			served[ing.UID] = ing
		}
		w.add(t, served[ing.UID])
	}
	w.served = served
	return t, whole
}

// add goes on after an error, which is the last one.
func (w *world) add(t *table, ing *v1alpha1.Ingress) (failed error) {
	ing = ing.DeepCopy()
	ing.SetDefaults(context.Background())
	if _, err := ingress.InsertProbe(ing); err != nil {
		return err
	}
	for _, r := range ing.Spec.Rules {
		external := r.Visibility == v1alpha1.IngressVisibilityExternalIP
		to := &rule{redirect: external && ing.Spec.HTTPOption == v1alpha1.HTTPOptionRedirected}
		for _, p := range r.HTTP.Paths {
			splits := path{HTTPIngressPath: p}
			for _, s := range p.Splits {
				b, err := w.resolve(s.IngressBackend)
				if err != nil {
					failed = err
				}
				splits.to = append(splits.to, b)
			}
			to.paths = append(to.paths, splits)
		}
		for _, h := range r.Hosts {
			if t.private[h] = to; external {
				t.public[h] = to
			}
		}
	}
	for _, c := range ing.Spec.TLS {
		s, err := w.secrets.Secrets(c.SecretNamespace).Get(c.SecretName)
		if err != nil {
			failed = err
			continue
		}
		pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
		if err != nil {
			failed = err
			continue
		}
		for _, h := range c.Hosts {
			t.certificates[h] = &pair
		}
	}
	return failed
}

func (w *world) resolve(to v1alpha1.IngressBackend) (b backend, err error) {
	s, err := w.services.Services(to.ServiceNamespace).Get(to.ServiceName)
	if err != nil {
		return b, err
	}
	port, err := find(s, to.ServicePort)
	if err != nil {
		return b, err
	}
	b.h2c = port.Name == "http2" || port.Name == "h2c" || port.AppProtocol != nil && *port.AppProtocol == "kubernetes.io/h2c"
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		b.addresses = []string{net.JoinHostPort(s.Spec.ExternalName, strconv.Itoa(int(port.Port)))}
		return b, nil
	}
	slices, err := w.slices.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name}))
	if err != nil {
		return b, err
	}
	for _, e := range slices {
		for _, p := range e.Ports {
			if p.Name != nil && *p.Name != port.Name || p.Port == nil {
				continue
			}
			for _, x := range e.Endpoints {
				if x.Conditions.Ready != nil && !*x.Conditions.Ready {
					continue
				}
				for _, a := range x.Addresses {
					b.addresses = append(b.addresses, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	if len(b.addresses) == 0 {
		return b, fmt.Errorf("%s/%s has no endpoints", s.Namespace, s.Name)
	}
	return b, nil
}

func find(s *corev1.Service, port intstr.IntOrString) (*corev1.ServicePort, error) {
	for i, p := range s.Spec.Ports {
		if port.Type == intstr.Int && p.Port == port.IntVal || port.Type == intstr.String && p.Name == port.StrVal {
			return &s.Spec.Ports[i], nil
		}
	}
	return nil, fmt.Errorf("%s/%s has no port %s", s.Namespace, s.Name, port.String())
}
