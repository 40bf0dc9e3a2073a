package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isolated are the namespaces of a cluster. Who is not root gets a user namespace in which they are.
func isolated() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// initMain is process 1: it prepares the namespaces, starts the supervisor, reaps whatever is orphaned to it, and
// returns with the supervisor's status. When it ends, the kernel kills all that is left.
func initMain(args []string) int {
	go func() { // see run: closed when the process that started us is gone
		io.Copy(io.Discard, os.NewFile(3, "life"))
		os.Exit(exitSoftware)
	}()
	syscall.CloseOnExec(3)
	o, err := parseOptions(args)
	if err == nil {
		err = isolate(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return exitUnavailable
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	self, err := os.Executable()
	if err != nil {
		return exitSoftware
	}
	p, err := os.StartProcess(self, append([]string{self, "supervise"}, args...), &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		log.Print(err)
		return exitSoftware
	}
	go func() {
		for s := range signals {
			p.Signal(s)
		}
	}()
	for {
		var w syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &w, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return exitSoftware
		case pid == p.Pid:
			return exitStatus(w)
		}
	}
}

func isolate(o *options) error {
	if err := mountsAndNetwork(o.dualStack); err != nil {
		return err
	}
	// COMMAND resolves the cluster's names, and no others.
	resolv := filepath.Join(o.dir, "resolv.conf")
	search := "svc." + clusterDomain + " " + clusterDomain
	if err := os.WriteFile(resolv, []byte(resolvConf(search)), 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	return unix.Mount(resolv, target, "", unix.MS_BIND, "")
}

func mountsAndNetwork(dualStack bool) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := network(dualStack); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

// rules have what kube-proxy asks of the kernel's nftables.
const rules = `table ip try {
	set ours { type ipv4_addr; elements = { 192.0.2.1 }; }
	map services { type ipv4_addr . inet_proto . inet_service : verdict; }
	chain endpoint { meta l4proto tcp dnat to 192.0.2.2:80; }
	chain service { numgen random mod 2 vmap { 0 : goto endpoint, 1 : goto endpoint }; }
	chain filtered { type filter hook forward priority 0; ct state new ip daddr @ours reject; }
	chain translated { type nat hook prerouting priority -100; ip daddr . meta l4proto . th dport vmap @services; }
	chain masqueraded { type nat hook postrouting priority 100; meta mark set meta mark ^ 0x4000; masquerade fully-random; }
}
`

// try does in new namespaces what a cluster does there, so that a machine where it fails is told from a broken cluster.
func try() error {
	if err := mountsAndNetwork(false); err != nil {
		return err
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	if out, err := nft.CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(string(out), "\n")
		return fmt.Errorf("nftables: %w: %s", err, first)
	}
	return nil
}

func resolvConf(search string) string {
	return "search " + search + "\nnameserver " + nodeIP + "\noptions ndots:5 timeout:1\n"
}

// network makes the node's side: its address on lo (not every kernel has dummy devices), and a pair of interfaces
// that leads nowhere with the default route on it. Packets to a ClusterIP need a route before nftables rewrites them.
func network(dualStack bool) error {
	if err := sysctl("net.ipv4.ip_forward=1", "net.ipv4.ip_unprivileged_port_start=0"); err != nil {
		return err
	}
	lo, err := linkUp("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: linkAttrs("node0"), PeerName: "node1"}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	node0, err := linkUp("node0")
	if err != nil {
		return err
	}
	if _, err := linkUp("node1"); err != nil {
		return err
	}
	addresses, everywhere := []string{nodeIP}, []string{"0.0.0.0/0"}
	if dualStack {
		if err := sysctl("net.ipv6.conf.all.forwarding=1"); err != nil {
			return err
		}
		addresses, everywhere = append(addresses, nodeIP6), append(everywhere, "::/0")
	}
	for i, a := range addresses {
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: single(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		_, all, _ := net.ParseCIDR(everywhere[i])
		r := netlink.Route{LinkIndex: node0.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: all, Src: net.ParseIP(a)}
		if err := netlink.RouteAdd(&r); err != nil {
			return fmt.Errorf("default route: %w", err)
		}
	}
	return nil
}

func linkAttrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func linkUp(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, netlink.LinkSetUp(l)
}

// single is the network of one address.
func single(ip string) *net.IPNet {
	a := net.ParseIP(ip)
	if v4 := a.To4(); v4 != nil {
		return &net.IPNet{IP: v4, Mask: net.CIDRMask(32, 32)}
	}
	return &net.IPNet{IP: a, Mask: net.CIDRMask(128, 128)}
}

func sysctl(settings ...string) error {
	for _, s := range settings {
		k, v, _ := strings.Cut(s, "=")
		if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(k, ".", "/"), []byte(v), 0o644); err != nil {
			return err
		}
	}
	return nil
}
