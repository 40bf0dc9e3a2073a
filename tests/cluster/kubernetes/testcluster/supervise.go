package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// startLimit bounds the start of the cluster, which takes 3 to 5 s.
const startLimit = 2 * time.Minute

// supervise starts the control plane, then COMMAND, and returns COMMAND's exit status.
func supervise(args []string) int {
	o, err := parseOptions(args)
	if err != nil {
		return exitUsage
	}
	began := time.Now()
	say := func(what string) {
		if !o.quiet {
			fmt.Fprintf(os.Stderr, "cluster: %s after %.1f s\n", what, time.Since(began).Seconds())
		}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	ctx, cancel := context.WithTimeoutCause(context.Background(), startLimit, fmt.Errorf("not up after %s", startLimit))
	defer cancel()
	up := make(chan error, 1)
	go func() { up <- startCluster(ctx, o, say) }()
	select {
	case <-signals:
		return 128 + int(syscall.SIGTERM)
	case err = <-up:
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return exitUnavailable
	}
	return runCommand(o, signals)
}

func runCommand(o *options, signals <-chan os.Signal) int {
	c := exec.Command(o.command[0], o.command[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(o.dir, "kubeconfig"), "SLUICE_CLUSTER_DIR="+o.dir,
		"KUBECACHEDIR="+filepath.Join(o.dir, "kubectl"), // every cluster has the same address, by which kubectl remembers
		"PATH="+filepath.Join(o.dir, "bin")+":"+os.Getenv("PATH"))
	if err := c.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 127
	}
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	var kill <-chan time.Time
	for {
		select {
		case <-ended:
			return exitStatus(c.ProcessState.Sys().(syscall.WaitStatus))
		case s := <-signals:
			if s == syscall.SIGINT {
				continue // of the terminal, which has sent it to COMMAND too
			}
			c.Process.Signal(s)
			kill = time.After(stopGrace)
		case <-kill:
			return 128 + int(syscall.SIGKILL)
		}
	}
}

func startCluster(ctx context.Context, o *options, say func(string)) error {
	if err := writePKI(o.dir); err != nil {
		return err
	}
	if err := linkImages(o); err != nil {
		return err
	}
	all, err := components(o)
	if err != nil {
		return err
	}
	died := make(chan error, len(all))
	for _, c := range all[:2] {
		if err := start(o.dir, c, died); err != nil {
			return err
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(o.dir, "kubeconfig"))
	if err != nil {
		return err
	}
	config.Timeout = 5 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	err = until(ctx, died, func() bool {
		b, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil && string(b) == "ok"
	})
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	say("API server ready")
	for _, c := range all[2:] {
		if err := start(o.dir, c, died); err != nil {
			return err
		}
	}
	// Pods can be made once their service account is there, and run once the node is.
	err = until(ctx, died, func() bool {
		if _, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return false
		}
		n, err := client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		return err == nil && len(n.Status.Conditions) > 0 && n.Status.Conditions[0].Status == corev1.ConditionTrue
	})
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	say("usable")
	return nil
}

// until polls, as nothing tells when a server begins to listen.
func until(ctx context.Context, died <-chan error, done func() bool) error {
	for !done() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-died:
			return err
		case <-time.After(25 * time.Millisecond):
		}
	}
	return nil
}

// start runs a component by the script that a test runs after it has killed it: `kill -9 $(cat kube-apiserver.pid)`,
// then `start-kube-apiserver &`. The script waits for the end of its predecessor, which still has its port for a moment.
func start(dir string, c component, died chan<- error) error {
	quoted := make([]string, len(c.argv))
	for i, a := range c.argv {
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	at := filepath.Join(dir, c.name)
	script := filepath.Join(dir, "bin", "start-"+c.name)
	text := fmt.Sprintf(`#!/bin/sh
while kill -0 "$(cat '%[1]s.pid' 2>/dev/null)" 2>/dev/null; do sleep 0.05; done
echo $$ >'%[1]s.pid'
exec %[2]s >>'%[1]s.log' 2>&1 </dev/null
`, at, strings.Join(quoted, " "))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		return err
	}
	p := exec.Command(script)
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is COMMAND's alone
	if err := p.Start(); err != nil {
		return err
	}
	go func() {
		err := p.Wait()
		log, _ := os.ReadFile(at + ".log")
		died <- fmt.Errorf("%s ended: %v: %s", c.name, err, tail(log, 500))
	}()
	return nil
}

func tail(b []byte, n int) string {
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return strings.TrimSpace(string(b))
}

// linkImages makes the directory in which the node looks up images, and one with kubectl for COMMAND's PATH. COMMAND may
// add to the former while the cluster runs.
func linkImages(o *options) error {
	images, bin := filepath.Join(o.dir, "images"), filepath.Join(o.dir, "bin")
	for _, d := range []string{images, bin, filepath.Join(o.dir, "pods")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, d := range o.images {
		entries, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if err := os.Symlink(filepath.Join(d, e.Name()), filepath.Join(images, e.Name())); err != nil {
				return err
			}
		}
	}
	for _, i := range o.image {
		name, file, ok := strings.Cut(i, "=")
		file, err := filepath.Abs(file)
		if !ok || err != nil {
			return fmt.Errorf("-image %s: not NAME=PROGRAM", i)
		}
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("-image %s: %w", i, err)
		}
		link := filepath.Join(images, imagePath(name))
		os.MkdirAll(filepath.Dir(link), 0o755)
		if err := os.Symlink(file, link); err != nil {
			return err
		}
	}
	kubectl, err := program(o.programs, "kubectl")
	if err != nil {
		return err
	}
	return os.Symlink(kubectl, filepath.Join(bin, "kubectl"))
}
