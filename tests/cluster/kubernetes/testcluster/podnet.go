package main

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// connect gives the Pod a network namespace of its own: queue-proxy talks to its program on 127.0.0.1. A pair of
// interfaces joins it to the node, with one route for each end; there is no bridge and no subnet.
func (p *pod) connect() error {
	space, err := newNetworkNamespace()
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	p.space = space
	inside, err := netlink.NewHandleAt(netns.NsHandle(space.Fd()))
	if err != nil {
		return err
	}
	defer inside.Close()
	p.removeLink()
	veth := &netlink.Veth{LinkAttrs: linkAttrs(p.veth()), PeerName: "eth0", PeerNamespace: netlink.NsFd(space.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	outer, err := linkUp(p.veth())
	if err != nil {
		return err
	}
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return err
	}
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, l := range []netlink.Link{lo, eth0} {
		if err := inside.LinkSetUp(l); err != nil {
			return err
		}
	}
	for _, a := range p.ips() {
		gateway, everywhere := nodeIP, "0.0.0.0/0"
		if net.ParseIP(a.IP).To4() == nil {
			gateway, everywhere = nodeIP6, "::/0"
		}
		_, all, _ := net.ParseCIDR(everywhere)
		index := eth0.Attrs().Index
		// The node's address is on its end of the pair too: IPv6 answers for the neighbour only there.
		if err := netlink.AddrAdd(outer, &netlink.Addr{IPNet: single(gateway), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address: %w", err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: outer.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: single(a.IP), Src: net.ParseIP(gateway)}); err != nil {
			return fmt.Errorf("route to the Pod: %w", err)
		}
		if err := inside.AddrAdd(eth0, &netlink.Addr{IPNet: single(a.IP), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address of the Pod: %w", err)
		}
		if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: single(gateway)}); err != nil {
			return fmt.Errorf("route to the node: %w", err)
		}
		if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Dst: all, Gw: net.ParseIP(gateway)}); err != nil {
			return fmt.Errorf("default route of the Pod: %w", err)
		}
	}
	return nil
}

// removeLink deletes both interfaces with their routes. The kernel destroys a network namespace some time after the last process in
// it has ended: until then the interfaces of a Pod whose node was killed are still there when the next node connects that Pod.
func (p *pod) removeLink() {
	if l, err := netlink.LinkByName(p.veth()); err == nil {
		netlink.LinkDel(l)
	}
}

// disconnect takes the interfaces away at once: the namespace itself ends with its last process.
func (p *pod) disconnect() {
	p.removeLink()
	if p.space != nil {
		p.space.Close()
	}
}

func (p *pod) veth() string { return "v" + p.id }

func (p *pod) ips() []corev1.PodIP {
	all := []corev1.PodIP{{IP: p.ip}}
	if p.node.dualStack { // the IPv6 address ends in the bytes of the other one
		six := net.ParseIP(nodeIP6)
		copy(six[14:], net.ParseIP(p.ip).To4()[2:])
		all = append(all, corev1.PodIP{IP: six.String()})
	}
	return all
}

func newNetworkNamespace() (space *os.File, err error) {
	err = onThread(nil, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		space, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return space, err
}

// onThread runs f on a thread that may change its network namespace, or that is in `space`. A thread that cannot go back
// ends with its goroutine.
func onThread(space *os.File, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			failed <- err
			return
		}
		defer own.Close()
		if space != nil {
			err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		failed <- err
	}()
	return <-failed
}
