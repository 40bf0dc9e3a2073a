//! Figures of the gateway in a Kubernetes cluster, next to Knative's own activator in the same run: `bench/cluster` starts
//! a test cluster of `tests/cluster` for each and runs this program in it.

mod addresses;
mod api;
mod backend;
mod changes;
mod objects;
mod place;
mod release;
mod warm;
mod zero;

use super::{Failure, run};

pub(crate) use backend::pod;

/// A figure, inside `tests/cluster/run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Debug, clap::Subcommand)]
enum Figure {
    /// A Knative Service at zero: the first request, and a hundred at once, through the gateway and through the activator.
    Zero(zero::Options),
    /// From a Pod that listens to the held requests, with the gateway and with the activator.
    Release(release::Options),
    /// CPU and latency of warm requests, through the gateway and through stub ingress and activator.
    Warm(warm::Options),
    /// Among many Ingresses: start, memory, and the time until a change is served and Ready.
    Changes(changes::Options),
    /// Hundreds of addresses of one revision appear under load.
    Addresses(addresses::Options),
}

pub(crate) fn main(options: Options) -> Result<(), Failure> {
    match options.figure {
        Figure::Zero(o) => run("cluster-zero", &o.common.clone(), || zero::run(o)),
        Figure::Release(o) => run("cluster-release", &o.common.clone(), || release::run(o)),
        Figure::Warm(o) => run("cluster-warm", &o.common.clone(), || warm::run(o)),
        Figure::Changes(o) => run("cluster-changes", &o.common.clone(), || changes::run(o)),
        Figure::Addresses(o) => run("cluster-addresses", &o.common.clone(), || addresses::run(o)),
    }
}

/// Who holds and routes the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// The gateway, straight to the Pod.
    Gateway,
    /// The stub ingress, then Knative's activator, then the Pod.
    Activator,
}

impl Path {
    pub(super) const ALL: [Self; 2] = [Self::Gateway, Self::Activator];

    /// Both, beginning with the other one in every second round.
    pub(super) fn order(round: usize) -> [Self; 2] {
        let [a, b] = Self::ALL;
        if round.is_multiple_of(2) { [a, b] } else { [b, a] }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Gateway => "sluice.ingress.networking.knative.dev",
            Self::Activator => "stub.ingress.networking.knative.dev",
        }
    }

    /// The word in names of objects.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Activator => "activator",
        }
    }

    /// The column of a table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Activator => "stub + activator",
        }
    }

    /// The programs of the path, whose CPU is its cost; queue-proxy and backend are those of either path.
    pub(super) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Gateway => &["sluice"],
            Self::Activator => &["stub", "activator"],
        }
    }

    /// Where it takes requests.
    async fn address(self, api: &api::Api) -> Result<std::net::SocketAddr, Failure> {
        let (namespace, app) = match self {
            Self::Gateway => ("sluice-system", "sluice"),
            Self::Activator => ("stub-system", "stub"),
        };
        let replicas = place::replicas(api, namespace, app).await?;
        let replica = replicas.first();
        let replica = replica.ok_or_else(|| Failure::Missing(format!("no replica of {app} is ready")))?;
        Ok(replica.at(8080))
    }
}
