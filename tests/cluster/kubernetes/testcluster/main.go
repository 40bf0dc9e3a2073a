// testcluster: a Kubernetes control plane and one node without a container engine, for the life of one command.
//
// run.go puts itself into namespaces (isolate.go), starts the control plane there (supervise.go, components.go,
// pki.go) and then the command. The node is a process of its own (node.go): it runs a Pod's images as local
// programs (pod.go, container.go, rootfs.go, podnet.go, env.go, volumes.go, probe.go), says how they are
// (status.go) and answers cluster DNS (dns.go).
package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// The address plan. Every cluster has it: each has a network namespace of its own.
const (
	nodeName      = "node"
	nodeIP        = "10.77.0.1" // Pods get the following addresses of its /16
	nodeIP6       = "fd00:77::1"
	serviceCIDR   = "10.96.0.0/16"
	serviceCIDR6  = "fd00:96::/112"
	podCIDR       = "10.77.0.0/16"
	podCIDR6      = "fd00:77::/64"
	apiServiceIP  = "10.96.0.1" // the first one of serviceCIDR: Service default/kubernetes
	clusterDomain = "cluster.local"
)

const usage = `usage: testcluster run [FLAGS] -- COMMAND [ARG]...   a cluster for the life of COMMAND
       testcluster check                               why it cannot run on this machine, in one line
flags of run:
`

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // nft, for those who are not root
	syscall.Umask(0o022)                                    // containers of other users read what we write
	what, args := "", []string(nil)
	if len(os.Args) > 1 {
		what, args = os.Args[1], os.Args[2:]
	}
	switch what {
	case "run":
		os.Exit(run(args))
	case "check":
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitUnavailable)
		}
	case "init": // process 1 of a cluster, started by run
		os.Exit(initMain(args))
	case "supervise": // its only child
		os.Exit(supervise(args))
	case "node":
		nodeMain(args)
	case "container": // process 1 of a container, started by node
		containerMain(args)
	case "try": // process 1 of the namespaces of check
		if err := try(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitUnavailable)
		}
	default:
		fmt.Fprint(os.Stderr, usage)
		parseOptions([]string{"-help"})
		os.Exit(exitUsage)
	}
}

// check tries what a cluster needs of the machine: namespaces, a network in them, and nft with what kube-proxy asks of it.
func check() error {
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("kube-proxy needs nft, which is not in PATH (Debian: apt-get install nftables)")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.Command(self, "try")
	c.SysProcAttr = isolated()
	switch out, err := c.CombinedOutput(); {
	case len(out) > 0:
		return fmt.Errorf("no cluster on this machine: %s", strings.TrimSpace(string(out)))
	case err != nil:
		return fmt.Errorf("no namespaces of our own here: %w", err)
	}
	return nil
}
