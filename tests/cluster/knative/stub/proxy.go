package main

import (
	"crypto/tls"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"

	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// exposure is what a listener is to its clients.
type exposure struct{ public, tls bool }

var (
	current    atomic.Pointer[table]
	http1, h2c = transport(false), transport(true)
)

func transport(h2c bool) *http.Transport {
	t := &http.Transport{MaxIdleConnsPerHost: 100, IdleConnTimeout: 10 * time.Second, DisableCompression: true, Protocols: new(http.Protocols)}
	t.Protocols.SetUnencryptedHTTP2(h2c)
	t.Protocols.SetHTTP1(!h2c)
	return t
}

func serve(address string, e exposure) {
	s := &http.Server{Addr: address, Protocols: new(http.Protocols), Handler: http.HandlerFunc(e.route)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	if !e.tls {
		log.Fatal(s.ListenAndServe())
	}
	s.TLSConfig = &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if t := current.Load(); t != nil && t.certificates[h.ServerName] != nil {
			return t.certificates[h.ServerName], nil
		}
		return nil, fmt.Errorf("no certificate for %q", h.ServerName)
	}}
	log.Fatal(s.ListenAndServeTLS("", ""))
}

func (e exposure) route(w http.ResponseWriter, r *http.Request) {
	t := current.Load()
	if t == nil {
		http.Error(w, "no table yet", http.StatusServiceUnavailable)
		return
	}
	host := strings.ToLower(r.Host)
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	hosts := t.private
	if e.public {
		hosts = t.public
	}
	to := hosts[host]
	switch {
	case to == nil && host == "stub-health": // of the readiness probe
	case to == nil:
		http.NotFound(w, r)
	case to.redirect && e.public && !e.tls:
		http.Redirect(w, r, "https://"+host+r.URL.RequestURI(), http.StatusMovedPermanently)
	default:
		for _, p := range to.paths {
			if p.matches(r) {
				p.forward(w, r)
				return
			}
		}
		http.NotFound(w, r)
	}
}

func (p *path) matches(r *http.Request) bool {
	for name, m := range p.Headers {
		if r.Header.Get(name) != m.Exact {
			return false
		}
	}
	return strings.HasPrefix(r.URL.Path, p.Path)
}

func (p *path) forward(w http.ResponseWriter, r *http.Request) {
	split, to := p.choose()
	if len(to.addresses) == 0 {
		http.Error(w, "no endpoints", http.StatusServiceUnavailable)
		return
	}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Transport: http1, Rewrite: func(q *httputil.ProxyRequest) {
		q.Out.URL.Scheme, q.Out.URL.Host, q.Out.Host = "http", to.addresses[rand.IntN(len(to.addresses))], r.Host
		q.SetXForwarded()
		if p.RewriteHost != "" {
			q.Out.Host = p.RewriteHost
		}
		for _, set := range []map[string]string{p.AppendHeaders, split.AppendHeaders} {
			for k, v := range set {
				q.Out.Header.Set(k, v)
			}
		}
	}}
	if to.h2c {
		proxy.Transport = h2c
	}
	proxy.ServeHTTP(w, r)
}

func (p *path) choose() (v1alpha1.IngressBackendSplit, backend) {
	n := rand.IntN(100)
	for i, s := range p.Splits {
		if n -= s.Percent; n < 0 {
			return s, p.to[i]
		}
	}
	return v1alpha1.IngressBackendSplit{}, backend{}
}
