package main

import (
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

func TestExpand(t *testing.T) {
	env := map[string]string{"A": "1", "B": ""}
	for in, want := range map[string]string{
		"$(A)/$(B)x": "1/x", "$$(A)": "$(A)", "$(C)": "$(C)", "$(A": "$(A", "$A $": "$A $", "a$(A)$(A)": "a11", "": "",
	} {
		if got := expand(in, env); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestImages(t *testing.T) {
	for in, want := range map[string]string{
		"dev.local/a/b:latest": "a/b", "localhost:5000/a": "a", "web": "web", "web:v1": "web",
		"dev.local/a@sha256:" + strings.Repeat("0", 64): "a",
	} {
		if got := imagePath(in); got != want || !validImage.MatchString(in) {
			t.Errorf("imagePath(%q) = %q, want %q; valid: %v", in, got, want, validImage.MatchString(in))
		}
	}
	for _, bad := range []string{"", "Upper", "a b", "a:", "a@sha256:00", "a:b:c"} {
		if validImage.MatchString(bad) {
			t.Errorf("%q is no image's name", bad)
		}
	}
}

func TestNames(t *testing.T) {
	services := cache.NewSharedIndexInformer(nil, &corev1.Service{}, 0, cache.Indexers{})
	for _, s := range []corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "plain"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.9"}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "alias"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "plain.n.svc.cluster.local"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "circle"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "circle.n.svc.cluster.local"}},
	} {
		services.GetStore().Add(&s)
	}
	n := &node{services: services}
	for name, want := range map[string]int{"plain.n": 1, "PLAIN.n": 1, "alias.n": 2, "circle.n": 8, "absent.n": -1, "n": -1} {
		q := dnsmessage.Question{Name: dnsmessage.MustNewName(name + ".svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
		all, found := n.answers(q)
		if got := len(all); found != (want >= 0) || found && got != want {
			t.Errorf("%s: found %v, %d answers, want %d", name, found, got, want)
		}
	}
}
