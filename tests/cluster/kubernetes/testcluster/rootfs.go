package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// root is what the process of a container finds around it.
type root struct {
	Dir      string // to build it on
	Hostname string
	Program  string            // the image
	Place    string            // where it is found: below /ko-app, as if ko had built it, since exec probes name it
	Files    map[string]string // of /etc
	Mounts   []bind            // volumes
	WorkDir  string
	Argv     []string
	Env      []string
	User     int
}

type bind struct {
	Source, Target string
	ReadOnly       bool
}

// root describes the container, or says why it cannot be made.
func (c *container) root() (*root, *corev1.ContainerStateWaiting) {
	p := c.pod
	o := p.object.Load()
	if !validImage.MatchString(c.spec.Image) {
		return nil, &corev1.ContainerStateWaiting{Reason: "InvalidImageName", Message: fmt.Sprintf("%q is not an image's name", c.spec.Image)}
	}
	program, ok := p.node.program(c.spec.Image)
	if !ok {
		return nil, &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no program for image " + c.spec.Image}
	}
	env, err := c.env(o)
	if err != nil {
		return nil, &corev1.ContainerStateWaiting{Reason: "CreateContainerConfigError", Message: err.Error()}
	}
	r := &root{
		Dir: filepath.Join(p.dir, "root-"+c.spec.Name), Hostname: o.Name, WorkDir: "/",
		Program: program, Place: "/ko-app/" + filepath.Base(imagePath(c.spec.Image)),
	}
	r.Argv = []string{r.Place}
	for k, v := range env {
		r.Env = append(r.Env, k+"="+v)
	}
	if len(c.spec.Command) > 0 {
		r.Argv = expandAll(c.spec.Command, env)
	}
	r.Argv = append(r.Argv, expandAll(c.spec.Args, env)...)
	if c.spec.WorkingDir != "" {
		r.WorkDir = c.spec.WorkingDir
	}
	if o.Spec.Hostname != "" {
		r.Hostname = o.Spec.Hostname
	}
	if s := o.Spec.SecurityContext; s != nil && s.RunAsUser != nil {
		r.User = int(*s.RunAsUser)
	}
	if s := c.spec.SecurityContext; s != nil && s.RunAsUser != nil {
		r.User = int(*s.RunAsUser)
	}
	r.Files = map[string]string{
		"resolv.conf": resolvConf(fmt.Sprintf("%s.svc.%s svc.%s %s", p.namespace, clusterDomain, clusterDomain, clusterDomain)),
		"hosts":       "127.0.0.1 localhost\n::1 localhost\n" + p.ip + " " + r.Hostname + "\n",
		"passwd":      "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n",
		"group":       "root:x:0:\nnonroot:x:65532:\n",
	}
	for _, m := range c.spec.VolumeMounts {
		r.Mounts = append(r.Mounts, bind{filepath.Join(p.dir, "volumes", m.Name, m.SubPath), m.MountPath, m.ReadOnly})
	}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return nil, &corev1.ContainerStateWaiting{Reason: "CreateContainerError", Message: err.Error()}
	}
	return r, nil
}

// validImage is coarser than the specification: capitals are allowed in tags and in registries with a port only.
var validImage = regexp.MustCompile(`^[a-z0-9._/-]+(:[0-9]+/[a-z0-9._/-]+)?(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?$`)

// containerMain is process 1 of new mount, pid, ipc and uts namespaces: it joins the Pod's network, builds the root and
// becomes the program.
func containerMain(args []string) {
	runtime.LockOSThread()
	var r root
	must("description", json.Unmarshal([]byte(args[0]), &r))
	must("network", unix.Setns(3, unix.CLONE_NEWNET))
	syscall.CloseOnExec(3)
	must("hostname", unix.Sethostname([]byte(r.Hostname)))
	must("root", r.build())
	must("proc", unix.Mount("proc", r.Dir+"/proc", "proc", 0, ""))
	must("chroot", unix.Chroot(r.Dir))
	must("working directory", unix.Chdir(r.WorkDir))
	if r.User != 0 {
		must("groups", syscall.Setgroups(nil))
		must("group", syscall.Setgid(r.User))
		must("user", syscall.Setuid(r.User))
	}
	// The node may be killed. After setuid, which forgets it.
	must("pdeathsig", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0))
	os.Clearenv()
	for _, e := range r.Env {
		k, v, _ := strings.Cut(e, "=")
		os.Setenv(k, v)
	}
	file, err := exec.LookPath(r.Argv[0])
	must("program", err)
	must("exec", syscall.Exec(file, r.Argv, r.Env))
}

func must(what string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "container:", what+":", err)
		os.Exit(128)
	}
}

// build makes a root of its own that has the machine's programs and libraries, and nothing else of it.
func (r *root) build() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("root", r.Dir, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, d := range []string{"etc", "proc", "run", "root", "ko-app", "var"} {
		if err := os.MkdirAll(filepath.Join(r.Dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(r.Dir, "tmp"), 0o777); err != nil {
		return err
	}
	os.Chmod(filepath.Join(r.Dir, "tmp"), os.ModeSticky|0o777)
	if err := os.Symlink("../run", filepath.Join(r.Dir, "var/run")); err != nil { // relative: it is followed before the chroot
		return err
	}
	for f, text := range r.Files {
		if err := os.WriteFile(filepath.Join(r.Dir, "etc", f), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, d := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64", "/dev", "/sys", "/etc/ssl", "/etc/nsswitch.conf", "/etc/ld.so.cache"} {
		if to, err := os.Readlink(d); err == nil && !filepath.IsAbs(to) { // merged /usr
			if err := os.Symlink(to, filepath.Join(r.Dir, d)); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat(d); err != nil {
			continue
		}
		if err := r.bind(bind{Source: d, Target: d}); err != nil {
			return err
		}
	}
	if err := r.bind(bind{Source: r.Program, Target: r.Place, ReadOnly: true}); err != nil {
		return err
	}
	for _, m := range r.Mounts {
		if err := r.bind(m); err != nil {
			return err
		}
	}
	return nil
}

func (r *root) bind(b bind) error {
	st, err := os.Stat(b.Source)
	if err != nil {
		return err
	}
	target := filepath.Join(r.Dir, b.Target)
	if st.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		var f *os.File
		if f, err = os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
			f.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(b.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", b.Target, err)
	}
	if b.ReadOnly {
		unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "") // a mount's locked flags may forbid it
	}
	return nil
}
