package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// component is one process of the control plane.
type component struct {
	name string
	argv []string
}

// components are in the order of their start; the API server must be ready before the third.
func components(o *options) ([]component, error) {
	in := func(f string) string { return filepath.Join(o.dir, f) }
	either := func(v4, v6 string) string {
		if o.dualStack {
			return v4 + "," + v6
		}
		return v4
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	all := []component{
		{"etcd", []string{
			"--data-dir=" + in("etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
		}},
		{"kube-apiserver", append([]string{
			"--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443", "--bind-address=0.0.0.0", "--advertise-address=" + nodeIP,
			"--service-cluster-ip-range=" + either(serviceCIDR, serviceCIDR6),
			"--tls-cert-file=" + in("apiserver.crt"), "--tls-private-key-file=" + in("apiserver.key"),
			"--client-ca-file=" + in("ca.crt"), "--token-auth-file=" + in("tokens.csv"),
			"--authorization-mode=RBAC", "--allow-privileged=true",
			"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
			"--service-account-key-file=" + in("service-account.pub"), "--service-account-signing-key-file=" + in("service-account.key"),
			"--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000",
		}, o.apiserver...)},
		{"kube-controller-manager", []string{
			"--kubeconfig=" + in("kubeconfig"), "--leader-elect=false", "--root-ca-file=" + in("ca.crt"),
			"--service-account-private-key-file=" + in("service-account.key"),
			"--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-service-endpoint-syncs=20", "--concurrent-endpoint-syncs=20",
			"--controllers=" + strings.Join(controllers, ","),
		}},
		{"kube-proxy", []string{"--config=" + in("kube-proxy.yaml")}},
		{"node", []string{
			"node", "-kubeconfig=" + in("kubeconfig"), "-state=" + in("pods"), "-images=" + in("images"), fmt.Sprintf("-dual-stack=%t", o.dualStack),
		}},
	}
	for i := range all {
		path := self
		if all[i].name != "node" {
			if path, err = program(o.programs, all[i].name); err != nil {
				return nil, err
			}
		}
		all[i].argv = append([]string{path}, all[i].argv...)
	}
	// kube-proxy writes in batches: with its default of a second between two, the first connection to a new
	// Service hangs for that long.
	return all, os.WriteFile(in("kube-proxy.yaml"), fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %q, qps: 500, burst: 1000}
hostnameOverride: %s
clusterCIDR: %q
nodePortAddresses: [%s]
nftables: {minSyncPeriod: 50ms, syncPeriod: 30s}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, in("kubeconfig"), nodeName, either(podCIDR, podCIDR6), either(`"`+nodeIP+`/32"`, `"`+nodeIP6+`/128"`)), 0o644)
}

// controllers are those that mean something on one node without clouds, disks and quotas of its own.
var controllers = []string{
	"clusterrole-aggregation-controller", "deployment-controller", "disruption-controller", "endpoints-controller",
	"endpointslice-controller", "endpointslice-mirroring-controller", "garbage-collector-controller", "job-controller",
	"namespace-controller", "pod-garbage-collector-controller", "replicaset-controller", "resourcequota-controller",
	"root-ca-certificate-publisher-controller", "serviceaccount-controller", "serviceaccount-token-controller", "statefulset-controller",
}

func program(path, name string) (string, error) {
	for _, d := range filepath.SplitList(path) {
		f := filepath.Join(d, name)
		if st, err := os.Stat(f); err == nil && !st.IsDir() {
			return filepath.Abs(f)
		}
	}
	return "", fmt.Errorf("no %s in %q", name, path)
}
