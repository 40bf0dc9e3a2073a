package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

const (
	exitUsage       = 64 // of sysexits.h, as are the next two
	exitUnavailable = 69
	exitSoftware    = 70
	exitTimeout     = 124 // as timeout(1)
	// stopGrace is what COMMAND has between SIGTERM and SIGKILL.
	stopGrace = 5 * time.Second
)

// options of `run`; parsed again, from the same arguments, by each of its processes.
type options struct {
	dir       string        // state and logs
	timeout   time.Duration // of all: start, COMMAND and end
	programs  string        // directories with etcd, kube-apiserver …; the first that has one wins
	images    list          // directories of images
	image     list          // NAME=PROGRAM
	apiserver list          // further flags of kube-apiserver
	dualStack bool
	quiet     bool
	command   []string
}

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func parseOptions(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("testcluster run", flag.ContinueOnError)
	f.StringVar(&o.dir, "dir", "", "`directory` for state and logs, emptied first and kept; default: a temporary one, kept if COMMAND fails")
	f.DurationVar(&o.timeout, "timeout", 30*time.Minute, "after this `time` everything is killed")
	f.StringVar(&o.programs, "programs", "", "`directories` with the control plane's programs, separated by colons")
	f.Var(&o.images, "images", "a `directory` with one program per image; may be repeated")
	f.Var(&o.image, "image", "one image more, `NAME=PROGRAM`, such as dev.local/sluice=target/ci/sluice; may be repeated")
	f.Var(&o.apiserver, "apiserver-flag", "a further `flag` of kube-apiserver, such as --v=4; may be repeated")
	f.BoolVar(&o.dualStack, "dual-stack", false, "IPv6 addresses for Pods and Services too")
	f.BoolVar(&o.quiet, "quiet", false, "say nothing but errors")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if o.command = f.Args(); len(o.command) == 0 {
		return nil, errors.New("no COMMAND")
	}
	if o.dir != "" {
		var err error
		if o.dir, err = filepath.Abs(o.dir); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// run starts a cluster in namespaces of its own and returns COMMAND's exit status.
//
// **Invariant:** nothing outlives it. The processes are in a pid namespace that ends with its first one, and that one
// ends when the pipe that only we hold is closed, which even SIGKILL does.
func run(args []string) int {
	o, err := parseOptions(args)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return exitUsage
	}
	if err := check(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return exitUnavailable
	}
	dir, temporary, err := makeStateDir(o.dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return exitSoftware
	}
	status := inNamespaces(append([]string{"init", "-dir", dir}, args...), o.timeout)
	switch {
	case !temporary:
	case status == 0:
		os.RemoveAll(dir)
	default:
		os.RemoveAll(filepath.Join(dir, "etcd"))
		fmt.Fprintln(os.Stderr, "cluster: logs are in", dir)
	}
	return status
}

func makeStateDir(dir string) (path string, temporary bool, err error) {
	if dir == "" {
		path, err = os.MkdirTemp("", "sluice-cluster-")
		return path, true, err
	}
	if old, _ := os.ReadDir(dir); len(old) > 0 {
		if _, err := os.Stat(filepath.Join(dir, "kubeconfig")); err != nil {
			return "", false, fmt.Errorf("%s has files and is no cluster's directory: not emptied", dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return "", false, err
		}
	}
	return dir, false, os.MkdirAll(dir, 0o755)
}

func inNamespaces(args []string, timeout time.Duration) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return exitSoftware
	}
	life, hold, err := os.Pipe()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return exitSoftware
	}
	defer hold.Close()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	c := exec.Command(self, args...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.ExtraFiles = []*os.File{life}
	c.SysProcAttr = isolated()
	if err := c.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster: namespaces:", err)
		return exitUnavailable
	}
	life.Close()
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	interactive := term.IsTerminal(int(os.Stdin.Fd()))
	late := time.After(timeout)
	var kill <-chan time.Time
	status := 0
	for {
		select {
		case <-ended:
			if status != 0 {
				return status
			}
			return exitStatus(c.ProcessState.Sys().(syscall.WaitStatus))
		case s := <-signals:
			if s == syscall.SIGINT && interactive {
				continue // the terminal has sent it to COMMAND too: a shell in here lives on
			}
			status = 128 + int(s.(syscall.Signal))
		case <-late:
			fmt.Fprintf(os.Stderr, "cluster: not done after %s: ended\n", timeout)
			status = exitTimeout
		case <-kill:
			c.Process.Kill()
			continue
		}
		c.Process.Signal(syscall.SIGTERM)
		if kill == nil {
			kill = time.After(stopGrace + 2*time.Second)
		}
	}
}

func exitStatus(w syscall.WaitStatus) int {
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}
