package main

import (
	"encoding/binary"
	"io"
	"log"
	"net"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// listenDNS answers for <service>.<namespace>.svc.<domain>: the ClusterIP, the ready endpoints of a headless Service, or the
// CNAME of an ExternalName one. Nothing else has a name, and nothing is forwarded.
func (n *node) listenDNS() error {
	packets, err := net.ListenPacket("udp", nodeIP+":53")
	if err != nil {
		return err
	}
	streams, err := net.Listen("tcp", nodeIP+":53")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 4096)
		for {
			l, from, err := packets.ReadFrom(b)
			if err != nil {
				log.Fatal(err)
			}
			if r, err := n.resolve(b[:l]); err == nil {
				packets.WriteTo(r, from)
			}
		}
	}()
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go n.resolveStream(c)
		}
	}()
	return nil
}

func (n *node) resolveStream(c net.Conn) {
	defer c.Close()
	for {
		var l uint16
		if binary.Read(c, binary.BigEndian, &l) != nil {
			return
		}
		b := make([]byte, l)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		r, err := n.resolve(b)
		if err != nil {
			return
		}
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...))
	}
}

func (n *node) resolve(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	answers, found := n.answers(q)
	h = dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	if !found {
		h.RCode = dnsmessage.RCodeNameError
	}
	m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{q}, Answers: answers}
	return m.Pack()
}

func (n *node) answers(q dnsmessage.Question) (all []dnsmessage.Resource, found bool) {
	name := strings.ToLower(q.Name.String())
	for range 8 { // a bound for circles of ExternalNames
		addresses, alias, ok := n.lookup(strings.TrimSuffix(name, "."))
		if !ok {
			return all, found
		}
		found = true
		owner, err := dnsmessage.NewName(name)
		if err != nil {
			return all, found
		}
		h := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: 1}
		if alias != "" {
			name = strings.TrimSuffix(alias, ".") + "."
			if to, err := dnsmessage.NewName(name); err == nil {
				all = append(all, dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: to}})
			}
			continue
		}
		for _, a := range addresses {
			v4 := a.To4()
			switch {
			case v4 != nil && q.Type == dnsmessage.TypeA:
				all = append(all, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: [4]byte(v4)}})
			case v4 == nil && q.Type == dnsmessage.TypeAAAA:
				all = append(all, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: [16]byte(a)}})
			}
		}
		break
	}
	return all, found
}

func (n *node) lookup(name string) (addresses []net.IP, alias string, ok bool) {
	rest, ok := strings.CutSuffix(name, ".svc."+clusterDomain)
	service, namespace, two := strings.Cut(rest, ".")
	if !ok || !two {
		return nil, "", false
	}
	o, exists, _ := n.services.GetStore().GetByKey(namespace + "/" + service)
	if !exists {
		return nil, "", false
	}
	s := o.(*corev1.Service)
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, s.Spec.ExternalName, true
	}
	if s.Spec.ClusterIP != corev1.ClusterIPNone {
		for _, a := range s.Spec.ClusterIPs {
			addresses = append(addresses, net.ParseIP(a))
		}
		return addresses, "", true
	}
	slices, _ := n.slices.GetIndexer().ByIndex(bySlice, namespace+"/"+service)
	for _, e := range slices {
		for _, p := range e.(*discoveryv1.EndpointSlice).Endpoints {
			if p.Conditions.Ready == nil || *p.Conditions.Ready {
				for _, a := range p.Addresses {
					addresses = append(addresses, net.ParseIP(a))
				}
			}
		}
	}
	return addresses, "", true
}
