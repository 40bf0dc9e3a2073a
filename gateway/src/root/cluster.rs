//! The cluster that a gateway follows: what it finds out about itself there.

#[cfg(feature = "cluster")]
use std::net::SocketAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
#[cfg(not(feature = "cluster"))]
use std::sync::atomic::AtomicBool;

use sluice_control::config::Defaults;
#[cfg(feature = "cluster")]
pub(super) use sluice_control::source::cluster::{ClusterSource, stats::StatsHandle};
use sluice_gateway::cli::RunArgs;
use sluice_gateway::edge::Drain;
use sluice_gateway::registry::Registry;
use sluice_gateway::replicas::Replicas;
use sluice_model::RevisionId;
#[cfg(feature = "cluster")]
use sluice_model::{EndpointSink, Load};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Without the feature no cluster is ever followed.
#[cfg(not(feature = "cluster"))]
pub(super) use sluice_control::source::NoSource as ClusterSource;

/// Without the feature nobody reports.
#[cfg(not(feature = "cluster"))]
#[derive(Debug, Clone)]
pub(super) struct StatsHandle;

#[cfg(not(feature = "cluster"))]
impl StatsHandle {
    pub(super) fn new(_: Arc<AtomicBool>) -> Self {
        Self
    }

    pub(super) fn activate(&self, _: &RevisionId) {}

    pub(super) fn connection(&self) -> Option<(bool, u64)> {
        None
    }
}

#[cfg(not(feature = "cluster"))]
pub(super) fn report(_: StatsHandle, _: &Arc<Registry>, _: &Runtime) {}

/// Starts to report statistics to the autoscaler of Knative Serving in the cluster.
#[cfg(feature = "cluster")]
pub(super) fn report(stats: StatsHandle, registry: &Arc<Registry>, runtime: &Runtime) {
    use sluice_control::source::cluster::stats::StatsOptions;

    let serving = knative_namespace();
    let options = StatsOptions {
        autoscaler: (format!("autoscaler.{serving}.svc.{}", cluster_domain()), 8080),
        pod_name: identity(),
    };
    let loads = Arc::new(RegistryLoads(Arc::clone(registry)));
    drop(runtime.spawn(stats.run(options, loads)));
}

/// The loads of revisions whose Pods the cluster's autoscaler starts and stops.
#[cfg(feature = "cluster")]
struct RegistryLoads(Arc<Registry>);

#[cfg(feature = "cluster")]
impl sluice_control::source::cluster::stats::PodLoads for RegistryLoads {
    fn sample(&self) -> Vec<(RevisionId, Load)> {
        let table = self.0.reader().load();
        let all = table
            .slots()
            .filter_map(|(entry, slot)| entry.live.revisions().get(slot));
        // A revision that sleeps was never asked for.
        let used = all.filter(|live| live.awake().is_some() && is_pods(&live.spec()));
        let sampled = used.filter_map(|live| Some((live.id().clone(), self.0.sample(live.id())?)));
        sampled.collect()
    }

    fn sample_one(&self, revision: &RevisionId) -> Option<Load> {
        let is_ours = self.0.live(revision).is_some_and(|live| is_pods(&live.spec()));
        is_ours.then(|| self.0.sample(revision)).flatten()
    }
}

#[cfg(feature = "cluster")]
fn is_pods(spec: &sluice_model::RevisionSpec) -> bool {
    matches!(spec.backend, sluice_model::Backend::Pods(_))
}

/// The namespace in the packaging, for a gateway outside of the cluster.
#[cfg(feature = "cluster")]
const NAMESPACE: &str = "sluice-system";

/// The port for other replicas.
#[cfg(feature = "cluster")]
const PEERS: u16 = 9902;

/// The default settings: in a cluster all addresses, IPv6 as well where there is any.
pub(super) fn defaults(args: &RunArgs) -> Defaults {
    if !args.kubernetes {
        return Defaults::default();
    }
    Defaults::of_cluster(all_addresses(), &cluster_domain())
}

/// The address that stands for all, of IPv6 and IPv4 where there is any IPv6.
fn all_addresses() -> IpAddr {
    let dual = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    // A socket of its own, since addresses of interfaces say nothing: IPv6 may be compiled out or turned off.
    let has_ipv6 = UdpSocket::bind((dual, 0)).is_ok();
    if has_ipv6 {
        dual
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }
}

/// Starts to follow the cluster. When the drain begins, another replica leads.
///
/// # Errors
/// What is wrong with its configuration, in one line.
#[cfg(feature = "cluster")]
pub(super) fn start(
    args: &RunArgs,
    runtime: &Runtime,
    mut phase: watch::Receiver<Drain>,
    replicas: &Arc<Replicas>,
) -> Result<ClusterSource, String> {
    use sluice_control::source::cluster::{ClusterOptions, connect};

    let options = ClusterOptions {
        namespace: namespace(),
        identity: identity(),
        cluster_domain: cluster_domain(),
        peers: peers(),
        knative_namespace: knative_namespace(),
        is_activator: is_activator(),
    };
    tracing::info!(
        namespace = options.namespace,
        identity = options.identity,
        cluster_domain = options.cluster_domain,
        activator = options.is_activator,
        "following a cluster"
    );
    let client = runtime.block_on(connect(args.kubeconfig.as_deref()));
    let client = client.map_err(|e| format!("cannot follow a cluster: {e}"))?;
    let _entered = runtime.enter();
    let leaving = async move {
        // The sender goes away with the process only.
        let _ = phase.wait_for(|phase| *phase != Drain::Serving).await;
    };
    Ok(ClusterSource::start(
        client,
        options,
        Arc::clone(replicas) as _,
        leaving,
    ))
}

#[cfg(not(feature = "cluster"))]
pub(super) fn start(
    _: &RunArgs,
    _: &Runtime,
    _: watch::Receiver<Drain>,
    _: &Arc<Replicas>,
) -> Result<ClusterSource, String> {
    Err("this build knows no cluster".to_owned())
}

/// `$POD_NAMESPACE`, else that of the Pod's service account.
#[cfg(feature = "cluster")]
fn namespace() -> String {
    const FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let named = std::env::var("POD_NAMESPACE").ok();
    let mounted = || std::fs::read_to_string(FILE).ok();
    let found = named.or_else(mounted).map(|name| name.trim().to_owned());
    found
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| NAMESPACE.to_owned())
}

/// `$POD_NAME`, else the host's name, which is that of a Pod; with a number where neither is known.
#[cfg(feature = "cluster")]
fn identity() -> String {
    named("POD_NAME").unwrap_or_else(|| {
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        host.unwrap_or_else(|| format!("sluice-{:08x}", fastrand::u32(..)))
    })
}

/// The address for other replicas: in a Pod alone, which is known by its name. Elsewhere nobody could reach it.
#[cfg(feature = "cluster")]
fn peers() -> Option<SocketAddr> {
    named("POD_NAME").map(|_| SocketAddr::new(all_addresses(), PEERS))
}

/// A variable that is set, and not empty.
fn named(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

/// `$KNATIVE_NAMESPACE`: where Knative Serving is.
#[cfg(feature = "cluster")]
fn knative_namespace() -> String {
    named("KNATIVE_NAMESPACE").unwrap_or_else(|| "knative-serving".to_owned())
}

/// Whether this Pod stands behind `activator-service`, as the chart's value `activator: fused` says in
/// `$SLUICE_ACTIVATOR`.
#[cfg(feature = "cluster")]
fn is_activator() -> bool {
    match std::env::var("SLUICE_ACTIVATOR").as_deref() {
        Ok("fused") => true,
        Ok("keep" | "") | Err(_) => false,
        Ok(other) => {
            tracing::warn!("SLUICE_ACTIVATOR is '{other}', neither 'keep' nor 'fused': taken as 'keep'");
            false
        }
    }
}

/// `$CLUSTER_DOMAIN`, else the domain that the resolver searches below `svc`; source: `network/domain.go` of
/// knative.dev/pkg.
fn cluster_domain() -> String {
    named("CLUSTER_DOMAIN").unwrap_or_else(|| {
        let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        searched(&resolver).unwrap_or("cluster.local").to_owned()
    })
}

fn searched(resolver: &str) -> Option<&str> {
    let lines = resolver
        .lines()
        .filter_map(|line| line.trim().strip_prefix("search"));
    let mut domains = lines.flat_map(str::split_whitespace);
    let found = domains.find_map(|domain| domain.strip_prefix("svc."))?;
    Some(found.trim_end_matches('.'))
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_the_one_that_is_searched_below_svc() {
        let resolver = "nameserver 10.0.0.10\nsearch d.svc.example.org svc.example.org. example.org\n";
        assert_eq!(searched(resolver), Some("example.org"));
        assert_eq!(searched("search example.org\n"), None);
    }
}
