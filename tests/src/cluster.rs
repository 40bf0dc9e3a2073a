//! Tests inside a Kubernetes cluster, where `tests/cluster/test` starts their executable.
//!
//! Inside, `KUBECONFIG` and `kubectl` are an administrator's, the cluster's DNS is the only one, Pods and Services are
//! reached directly, and the binary under test is the image `dev.local/sluice`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::api_server::ApiServer;
use crate::wait::{SOON, wait_for, wait_until, within};

/// The node's address, which Pods reach: a backend in the test's own process listens there.
pub const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1));

/// The deadline of a script of `tests/cluster`, which wait for Pods themselves.
const SCRIPT: Duration = Duration::from_secs(300);

/// A process of the control plane or the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// The API server. Its clients' watches end with it.
    ApiServer,
    /// What the API server keeps its objects in, on disk.
    Etcd,
    /// The controllers, among them those of Deployments and EndpointSlices.
    ControllerManager,
    /// What makes the addresses of Services lead to Pods.
    KubeProxy,
    /// The node. Its Pods' processes end with it.
    Node,
}

impl Component {
    fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::Etcd => "etcd",
            Self::ControllerManager => "kube-controller-manager",
            Self::KubeProxy => "kube-proxy",
            Self::Node => "node",
        }
    }
}

/// The cluster around this process.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
}

/// The cluster around this process. Outside of one it is `None`, and a line says that the test is skipped.
pub fn inside() -> Option<Cluster> {
    let Some(dir) = std::env::var_os("SLUICE_CLUSTER_DIR") else {
        eprintln!("SKIPPED: not inside a cluster: tests/cluster/test runs this test in one");
        return None;
    };
    Some(Cluster { dir: dir.into() })
}

impl Cluster {
    /// The directory of the cluster's logs, its images and `ca.crt`: see tests/cluster/README.md.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates a namespace that no other test has, in which Pods can be created at once. It ends with the cluster.
    ///
    /// # Panics
    /// When the API server refuses.
    pub async fn namespace(&self, name: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name]).await;
        // A Pod is refused until a controller has made the service account that it has by default.
        wait_for("the default service account", SOON, || async {
            self.try_kubectl(&["--namespace", &name, "get", "serviceaccount", "default"], "")
                .await
                .ok()
        })
        .await;
        name
    }

    /// Runs `kubectl` and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        let done = self.try_kubectl(args, "").await;
        done.unwrap_or_else(|e| panic!("kubectl {args:?}: {e}"))
    }

    /// Creates or changes the objects of a YAML document, of this namespace where they name none.
    ///
    /// # Panics
    /// When the API server refuses one.
    pub async fn apply(&self, namespace: &str, objects: &str) {
        let args = ["--namespace", namespace, "apply", "--filename", "-"];
        let done = self.try_kubectl(&args, objects).await;
        done.unwrap_or_else(|e| panic!("{e}: {objects}"));
    }

    /// Runs `kubectl` with this standard input and returns its standard output.
    ///
    /// # Errors
    /// Its standard error, when it fails.
    pub async fn try_kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        run(Command::new("kubectl").args(args), input, SOON * 3).await
    }

    /// The API server, without kubectl.
    pub fn api(&self) -> ApiServer {
        ApiServer::of(&self.dir)
    }

    /// Runs a script of `tests/cluster`, such as `stub`, `serving` and `sluice`.
    ///
    /// # Panics
    /// When it fails, with what it says.
    pub async fn script(&self, name: &str, args: &[&str]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name);
        let done = run(Command::new(&path).args(args), "", SCRIPT).await;
        done.unwrap_or_else(|e| panic!("{} {args:?}: {e}", path.display()));
    }

    /// The ClusterIP of a Service, with this port.
    ///
    /// # Panics
    /// When there is none.
    pub async fn service(&self, namespace: &str, name: &str, port: u16) -> SocketAddr {
        let args = [
            "--namespace",
            namespace,
            "get",
            "service",
            name,
            "--output=jsonpath={.spec.clusterIP}",
        ];
        let ip = self.kubectl(&args).await;
        SocketAddr::new(ip.parse().expect("a Service with an address"), port)
    }

    /// What the containers of a namespace's Pods have written so far, of Pods that are gone too.
    pub fn logs(&self, namespace: &str) -> String {
        let mut text = String::new();
        for pod in entries(&self.dir.join("pods")) {
            let name = pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with(&format!("{namespace}_")) {
                continue;
            }
            for log in entries(&pod) {
                if log.extension().is_some_and(|e| e == "log") {
                    let lines = std::fs::read_to_string(&log).unwrap_or_default();
                    text += &format!("==> {name}\n{lines}");
                }
            }
        }
        text
    }

    /// Kills a component. Only a test that has the cluster to itself may: one of the module `alone`.
    ///
    /// # Panics
    /// When it is not running.
    pub async fn kill(&self, component: Component) {
        let pid = self.pid(component);
        let process = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).expect("it runs");
        wait_until("the component has ended", SOON, || !crate::process::is_alive(pid)).await;
    }

    /// Starts a component that was killed. It is not ready at once.
    ///
    /// # Panics
    /// When there is no program to start.
    pub fn start(&self, component: Component) {
        let mut command = Command::new(format!("start-{}", component.name()));
        command.stdin(Stdio::null());
        // Not killed with the handle: it is the cluster's.
        drop(command.spawn().expect("the cluster has put it into PATH"));
    }

    /// The process of a component.
    ///
    /// # Panics
    /// When it was never started.
    pub fn pid(&self, component: Component) -> u32 {
        let file = self.dir.join(format!("{}.pid", component.name()));
        let pid = std::fs::read_to_string(file).expect("the component has been started");
        pid.trim().parse().expect("a pid")
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = found.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

async fn run(command: &mut Command, input: &str, limit: Duration) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let done = async {
        let write = async {
            // A command that fails early closes its end; its status says so.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        };
        tokio::join!(write, child.wait_with_output()).1
    };
    let output = within("a command in the cluster", limit, done).await;
    let output = output.map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}
