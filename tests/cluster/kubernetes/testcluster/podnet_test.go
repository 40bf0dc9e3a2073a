package main

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// Two Pods reach each other, themselves and are reached by the node, by both families. The node is a network namespace
// here, as in a cluster.
func TestConnect(t *testing.T) {
	space, err := newNetworkNamespace()
	if err != nil {
		t.Skip("no network namespace of our own: ", err)
	}
	defer space.Close()
	err = onThread(space, func() error {
		if err := network(true); err != nil {
			return err
		}
		var pods []*pod
		for i := range 2 {
			p := &pod{node: &node{dualStack: true}, ip: fmt.Sprintf("10.77.0.%d", 2+i), id: fmt.Sprintf("abcdefghijk%d", i)}
			if err := p.connect(); err != nil {
				return err
			}
			pods = append(pods, p)
		}
		for _, p := range pods {
			for _, a := range p.ips() {
				address := net.JoinHostPort(a.IP, "80")
				var l net.Listener
				err := onThread(p.space, func() (err error) { l, err = net.Listen("tcp", address); return err })
				if err != nil {
					return err
				}
				defer l.Close()
				dial := func() error {
					c, err := net.DialTimeout("tcp", address, 5*time.Second)
					if err == nil {
						c.Close()
					}
					return err
				}
				for who, err := range map[string]error{"node": dial(), "one": onThread(pods[0].space, dial), "other": onThread(pods[1].space, dial)} {
					if err != nil {
						return fmt.Errorf("%s to %s: %w", who, address, err)
					}
				}
			}
		}
		// By the next node, while the namespace of before is still there.
		again := &pod{node: pods[0].node, ip: pods[0].ip, id: pods[0].id}
		if err := again.connect(); err != nil {
			return fmt.Errorf("once more: %w", err)
		}
		again.disconnect()
		pods[0].disconnect()
		if _, err := net.InterfaceByName(pods[0].veth()); err == nil {
			return fmt.Errorf("%s is still there", pods[0].veth())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
