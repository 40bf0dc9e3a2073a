//! Leader election by a Lease (`coordination.k8s.io`): one replica writes statuses. Routing needs no leader.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::ClusterOptions;

/// The name of the Lease.
const NAME: &str = "sluice-status";

/// The time for which a Lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(10);

/// The interval of renewals, and of looks at another replica's Lease.
const RENEW: Duration = Duration::from_secs(2);

/// The longest time for one look and one renewal together.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Who leads, as far as this replica knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leader {
    /// Nobody, or it is not known.
    Nobody,
    /// This replica.
    Me,
    /// The replica of this name.
    Other(String),
}

/// What this replica knows of the Lease.
#[derive(Debug, Default)]
struct Observed {
    /// The holder and the count of its renewals as seen last, and when that was seen first. Clocks of replicas differ:
    /// a Lease is expired when it has not changed for its duration by the own clock.
    seen: Option<(String, Option<MicroTime>, Instant)>,
}

/// What to do about the Lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is ours: renew it.
    Renew,
    /// Nobody has it any more: take it.
    Take,
    /// Another replica has it.
    Wait,
}

impl Observed {
    fn step(&mut self, me: &str, spec: &LeaseSpec, now: Instant) -> Step {
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder == me {
            return Step::Renew;
        }
        if holder.is_empty() {
            return Step::Take;
        }
        let renewed = spec.renew_time.clone();
        match &self.seen {
            Some((known, at, since)) if *known == holder && *at == renewed => {
                if now.duration_since(*since) >= DURATION {
                    return Step::Take;
                }
            }
            _ => self.seen = Some((holder, renewed, now)),
        }
        Step::Wait
    }
}

/// The task that takes part in the election, and its result so far. A replica that cannot renew in time stops leading
/// before its Lease ends for the others; where each attempt is as slow as it may be, that is looked at up to a second
/// too late, and two replicas may write statuses for that long. When `leaving` resolves, a Lease that is held is released, so that the next look of
/// any other replica takes it, and none is taken any more.
pub(super) fn elect<F: Future<Output = ()> + Send + 'static>(
    client: Client,
    options: &ClusterOptions,
    leaving: F,
) -> (impl Future<Output = ()> + Send + use<F>, watch::Receiver<Leader>) {
    let (sender, leader) = watch::channel(Leader::Nobody);
    let api = Api::<Lease>::namespaced(client, &options.namespace);
    let me = options.identity.clone();
    let task = async move {
        let mut observed = Observed::default();
        let mut renewed: Option<Instant> = None;
        let mut other = Leader::Nobody;
        let mut ticks = interval(RENEW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_broken = false;
        let mut leaving = pin!(leaving);
        let mut is_candidate = true;
        loop {
            let end = renewed.map(|at| at + DURATION - RENEW);
            tokio::select! {
                _ = ticks.tick() => {}
                // Between two ticks as well: by now another replica may be about to take the Lease.
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {}
                () = &mut leaving, if is_candidate => {
                    is_candidate = false;
                    if renewed.take().is_some() {
                        // Before the Lease is free, so that nothing is written beside the next leader.
                        sender.send_replace(Leader::Nobody);
                        match timeout(RENEW, release(&api, &me)).await {
                            Ok(Ok(())) => tracing::info!("the Lease {NAME} is released"),
                            Ok(Err(error)) => tracing::warn!(%error, "the Lease {NAME} cannot be released"),
                            Err(_) => tracing::warn!("the Lease {NAME} cannot be released in time"),
                        }
                    }
                }
            }
            let began = Instant::now();
            let patience = patience(renewed.map(|at| began - at));
            match timeout(patience, attempt(&api, &me, &mut observed, is_candidate)).await {
                Ok(Ok(Leader::Me)) => renewed = Some(began),
                Ok(Ok(holder)) => {
                    renewed = None;
                    other = holder;
                }
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut is_broken, true) {
                        tracing::warn!(%error, "the Lease {NAME} cannot be read or renewed");
                    }
                }
                Err(_) => {}
            }
            let is_mine = renewed.is_some_and(|at| at.elapsed() < DURATION - RENEW);
            if !is_mine && renewed.take().is_some() {
                // Who leads next was not seen yet; who led before this replica does not any more.
                other = Leader::Nobody;
            }
            let now = if is_mine { Leader::Me } else { other.clone() };
            sender.send_if_modified(|leader| {
                let has_changed = *leader != now;
                if has_changed {
                    tracing::info!(leader = ?now, "leader election for statuses");
                    *leader = now;
                }
                has_changed
            });
        }
    };
    (task, leader)
}

/// The time limit of one attempt, by the age of the own Lease. An API server that is slow for seconds takes the lead from nobody: a
/// leader waits for as long as its Lease is its own, less a margin.
fn patience(age: Option<Duration>) -> Duration {
    let left = age.map_or(ATTEMPT, |age| (DURATION - RENEW).saturating_sub(age));
    left.min(ATTEMPT)
}

/// One look at the Lease. Returns whose it is afterwards.
async fn attempt(
    api: &Api<Lease>,
    me: &str,
    observed: &mut Observed,
    is_candidate: bool,
) -> Result<Leader, kube::Error> {
    let Some(mut lease) = api.get_opt(NAME).await? else {
        if !is_candidate {
            return Ok(Leader::Nobody);
        }
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(held(me, LeaseSpec::default())),
        };
        return answer(api.create(&PostParams::default(), &lease).await);
    };
    let spec = lease.spec.take().unwrap_or_default();
    match observed.step(me, &spec, Instant::now()) {
        Step::Wait => return Ok(spec.holder_identity.map_or(Leader::Nobody, Leader::Other)),
        // One that could not be released ends by itself.
        Step::Renew | Step::Take if !is_candidate => return Ok(Leader::Nobody),
        Step::Renew | Step::Take => lease.spec = Some(held(me, spec)),
    }
    // With its resourceVersion: of two replicas that take it, one is refused.
    answer(api.replace(NAME, &PostParams::default(), &lease).await)
}

/// Gives the Lease back, if it is ours.
async fn release(api: &Api<Lease>, me: &str) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(NAME).await? else {
        return Ok(());
    };
    if let Some(spec) = &mut lease.spec
        && spec.holder_identity.as_deref() == Some(me)
    {
        spec.holder_identity = None;
        // With its resourceVersion: what somebody else has taken meanwhile is not given back.
        answer(api.replace(NAME, &PostParams::default(), &lease).await)?;
    }
    Ok(())
}

fn answer(result: Result<Lease, kube::Error>) -> Result<Leader, kube::Error> {
    match result {
        Ok(_) => Ok(Leader::Me),
        // Another replica was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Leader::Nobody),
        Err(error) => Err(error),
    }
}

fn held(me: &str, before: LeaseSpec) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    let is_new = before.holder_identity.as_deref() != Some(me);
    let transitions = before.lease_transitions.unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if is_new {
            Some(now.clone())
        } else {
            before.acquire_time
        },
        renew_time: Some(now),
        lease_transitions: Some(transitions + i32::from(is_new)),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Timestamp::from_second(renewed).ok().map(MicroTime),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn an_attempt_ends_before_the_own_lease_does() {
        assert_eq!(patience(None), ATTEMPT);
        for age in (0..12_000).step_by(100).map(Duration::from_millis) {
            let patience = patience(Some(age));
            assert!(patience <= ATTEMPT, "{patience:?}");
            assert!(age + patience <= age.max(DURATION - RENEW), "{age:?}");
        }
        assert_eq!(patience(Some(RENEW)), ATTEMPT);
    }

    #[test]
    fn a_lease_is_taken_when_it_did_not_change_for_its_duration() {
        let start = Instant::now();
        let mut observed = Observed::default();
        let mut step = |holder, renewed, after: u64| {
            observed.step("me", &spec(holder, renewed), start + Duration::from_secs(after))
        };
        assert_eq!(step("me", 0, 0), Step::Renew);
        assert_eq!(step("", 0, 0), Step::Take);
        // A clock that is far behind says nothing.
        assert_eq!(step("other", 1, 0), Step::Wait);
        assert_eq!(step("other", 2, 9), Step::Wait);
        assert_eq!(step("other", 2, 18), Step::Wait);
        assert_eq!(step("other", 2, 19), Step::Take);
        assert_eq!(step("third", 2, 20), Step::Wait);
    }
}
