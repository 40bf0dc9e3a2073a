//! The traffic that files declare, and what it becomes by the service's history.

use std::sync::Arc;

use sluice_model::{Percent, RevisionId, Service, Tag, TrafficSplit, TrafficTarget};

use super::edits::Release;
use super::history::{KeptRevision, ServiceHistory};
use crate::compile::CompiledService;
use crate::rollout::RolloutPolicy;

/// What files declare about the revisions of a service that has, or may have, a history.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Declared {
    /// The revision that the template of a manifest makes now; `None` for a service whose revisions are listed.
    pub(crate) made: Option<KeptRevision>,
    /// The rules of rollouts, where files have them.
    pub(crate) rollout: Option<Arc<RolloutPolicy>>,
    /// The service's own traffic.
    pub(crate) own: Vec<DeclaredTarget>,
    /// By route.
    pub(crate) routes: Vec<Vec<DeclaredTarget>>,
}

/// A target of a traffic block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeclaredTarget {
    /// Which of the service's revisions; of a `latestRevision` target the last one.
    pub(crate) revision: usize,
    /// The target follows the latest revision.
    pub(crate) is_latest: bool,
    pub(crate) percent: Percent,
    pub(crate) tag: Option<Tag>,
}

impl DeclaredTarget {
    pub(crate) fn without_tag(&self) -> Self {
        Self {
            tag: None,
            ..self.clone()
        }
    }

    fn is_reachable(&self) -> bool {
        self.percent.hundredths() > 0 || self.tag.is_some()
    }
}

/// Who has the share of `latestRevision` targets, by the index of the revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Latest {
    /// Has what the candidate has not.
    settled: usize,
    /// A newer revision, and its part in hundredths of a percent.
    candidate: Option<(usize, u32)>,
    /// Tags lead to it.
    tagged: usize,
}

impl Latest {
    fn whole(revision: usize) -> Self {
        Self {
            settled: revision,
            candidate: None,
            tagged: revision,
        }
    }
}

impl Declared {
    /// What a published service without a history declares: the traffic that it has.
    pub(crate) fn of_published(service: &Service) -> Self {
        let fixed = |split: &TrafficSplit| {
            let targets = split.targets().iter();
            let targets = targets.map(|target| DeclaredTarget {
                revision: target.slot,
                is_latest: service.revisions.len() == 1,
                percent: target.percent,
                tag: target.tag.clone(),
            });
            targets.collect()
        };
        Self {
            own: fixed(&service.main.split),
            routes: service
                .main
                .routes
                .iter()
                .map(|route| fixed(&route.split))
                .collect(),
            ..Self::default()
        }
    }

    /// Whether a new latest revision gets its traffic by a rollout, not at once.
    fn is_gated(&self) -> bool {
        self.made.is_some() || self.rollout.is_some()
    }

    /// The history after a publication of a service with this digest and these revisions. `before` is the latest revision as it
    /// was published last, if the service was.
    pub(crate) fn advance(
        &self,
        digest: u64,
        names: &[&str],
        history: &ServiceHistory,
        before: Option<&str>,
    ) -> ServiceHistory {
        let mut next = history.clone();
        match &self.made {
            Some(made) if !next.revisions.iter().any(|kept| kept.name == made.name) => {
                next.revisions.push(made.clone());
            }
            Some(_) => {}
            // The service is no manifest any more.
            None => next.revisions.clear(),
        }
        let ended = next.over.take_if(|over| over.declared != digest);
        if !self.is_gated() {
            (next.settled, next.rollout) = (None, None);
            return next;
        }
        let is_listed = |name: &str| names.contains(&name);
        if next
            .rollout
            .as_ref()
            .is_some_and(|rollout| !is_listed(&rollout.candidate))
        {
            next.rollout = None;
        }
        let rolled = next.rollout.as_ref().map(|rollout| rollout.candidate.as_str());
        let latest = names.last().copied();
        let is_new = latest != next.settled.as_deref() && latest != rolled;
        let pinned = ended.and_then(|over| over.pinned);
        if let Some(pinned) = pinned.filter(|pinned| is_new && is_listed(pinned)) {
            // A newer revision ends a rollback, and is rolled out from the one that has the traffic.
            next.settled = Some(pinned);
        } else if next.settled.is_none() {
            // The first rollout begins at what has the traffic so far.
            let first = before.filter(|before| is_listed(before)).or(latest);
            next.settled = first.map(str::to_owned);
        } else if !next.settled.as_deref().is_some_and(is_listed) {
            // The share goes to the newest one that no rollout is about: one that failed does not get it that way.
            let mut others = names.iter().rev().filter(|name| Some(**name) != rolled);
            let heir = others.next().copied().or(latest);
            next.settled = heir.map(str::to_owned);
            if heir == rolled {
                next.rollout = None;
            }
        }
        next
    }

    /// The service as it is published by this history. `None` where the shares contradict each other, which the compiler
    /// has ruled out.
    pub(crate) fn apply(
        &self,
        compiled: &CompiledService,
        history: &ServiceHistory,
    ) -> Option<CompiledService> {
        let service = &compiled.service;
        let latest = self.latest(compiled, history)?;
        let id_of = |revision: usize| service.revisions.get(revision).map(|spec| &spec.id);
        let mut next: Service = (**service).clone();
        next.paused = history.is_paused(compiled.digest);
        next.main.split = split(&self.own, latest, id_of)?;
        for (route, own) in next.main.routes.iter_mut().zip(&self.routes) {
            route.split = split(own, latest, id_of)?;
        }
        let plans = compiled.plans.iter().map(|(id, plan)| {
            let reachable = self.reaches(latest, service, id);
            if plan.reachable == reachable {
                return (id.clone(), Arc::clone(plan));
            }
            let mut plan = (**plan).clone();
            plan.reachable = reachable;
            (id.clone(), Arc::new(plan))
        });
        Some(CompiledService {
            plans: plans.collect(),
            service: Arc::new(next),
            ..compiled.clone()
        })
    }

    /// The release of a service that is published by this history.
    pub(crate) fn release(&self, compiled: &CompiledService, history: Arc<ServiceHistory>) -> Release {
        let service = &compiled.service;
        let latest = self.latest(compiled, &history);
        let reached = service.revisions.iter().map(|spec| spec.id.clone());
        let reached = reached.filter(|id| latest.is_some_and(|latest| self.reaches(latest, service, id)));
        let following = |targets: &Vec<DeclaredTarget>| {
            let latest = targets.iter().filter(|target| target.is_latest);
            latest.map(|target| target.percent.hundredths()).sum::<u32>()
        };
        let follows_latest = self.routes.iter().chain([&self.own]).map(following).max();
        Release {
            digest: compiled.digest,
            revisions: service.revisions.iter().map(|spec| spec.id.clone()).collect(),
            policy: self.rollout.clone(),
            is_manifest: self.made.is_some(),
            follows_latest: follows_latest.unwrap_or_default(),
            reached: reached.collect(),
            scaled: compiled.plans.iter().map(|(id, _)| id.clone()).collect(),
            history,
        }
    }

    /// Who has the share of `latestRevision` targets; `None` without revisions.
    fn latest(&self, compiled: &CompiledService, history: &ServiceHistory) -> Option<Latest> {
        let revisions = &compiled.service.revisions;
        let last = revisions.len().checked_sub(1)?;
        let at = |name: &str| revisions.iter().position(|spec| spec.id.name() == name);
        if let Some(pinned) = history.pinned(compiled.digest).and_then(at) {
            return Some(Latest::whole(pinned));
        }
        let settled = history.settled.as_deref().and_then(at);
        let Some(settled) = settled.filter(|settled| *settled != last && self.is_gated()) else {
            return Some(Latest::whole(last));
        };
        // Without a rollout of the last revision it was not seen ready: the rollout is about to begin.
        let rollout = history.rollout.as_ref();
        let rollout = rollout.filter(|rollout| at(&rollout.candidate) == Some(last));
        let is_open = rollout.is_none_or(|rollout| rollout.state.is_open());
        let is_tagged = rollout.is_some_and(|rollout| rollout.ready);
        Some(Latest {
            settled,
            candidate: is_open.then_some((last, rollout.map_or(0, |rollout| rollout.share))),
            tagged: if is_tagged { last } else { settled },
        })
    }

    /// Whether any share or tag leads to a revision, or a rollout is about to. Tiers count as their revision.
    fn reaches(&self, latest: Latest, service: &Service, id: &RevisionId) -> bool {
        let name = id.name().split('@').next().unwrap_or_default();
        let nth = service.revisions.iter().position(|spec| spec.id.name() == name);
        let all = self.routes.iter().flatten().chain(&self.own);
        let mut all = all.filter(|target| target.is_reachable());
        all.any(|target| match target.is_latest {
            false => Some(target.revision) == nth,
            true => {
                let candidate = latest.candidate.map(|(candidate, _)| candidate);
                let is_part = nth == Some(latest.settled) || nth == candidate;
                target.percent.hundredths() > 0 && is_part
                    || target.tag.is_some() && (nth == Some(latest.tagged) || nth == candidate)
            }
        })
    }
}

/// The split where `latestRevision` is the last one listed. `id_of` is the id of a revision. `None` without an id, and where
/// shares do not add up.
pub(crate) fn split_at_once<'i>(
    targets: &[DeclaredTarget],
    last: usize,
    id_of: impl Fn(usize) -> Option<&'i RevisionId>,
) -> Option<TrafficSplit> {
    split(targets, Latest::whole(last), id_of)
}

/// The split. A revision that is listed several times gets the sum at its first place, so that a sticky choice sees it
/// once; its other places keep their tags.
fn split<'i>(
    targets: &[DeclaredTarget],
    latest: Latest,
    id_of: impl Fn(usize) -> Option<&'i RevisionId>,
) -> Option<TrafficSplit> {
    let mut out: Vec<TrafficTarget> = Vec::with_capacity(targets.len());
    let mut add = |revision: usize, hundredths: u32, tag: Option<&Tag>| {
        let id = id_of(revision)?;
        let mut percent = Percent::from_hundredths(hundredths)?;
        if let Some(first) = out.iter_mut().find(|target| target.revision == *id) {
            first.percent = Percent::from_hundredths(first.percent.hundredths() + hundredths)?;
            percent = Percent::from_hundredths(0)?;
            if tag.is_none() {
                return Some(());
            }
        }
        out.push(TrafficTarget {
            revision: id.clone(),
            slot: revision,
            percent,
            tag: tag.cloned(),
            append_headers: Arc::default(),
        });
        Some(())
    };
    for target in targets {
        let (percent, tag) = (target.percent.hundredths(), target.tag.as_ref());
        if !target.is_latest {
            add(target.revision, percent, tag)?;
            continue;
        }
        let part = latest
            .candidate
            .map_or(0, |(_, part)| percent * part / Percent::WHOLE);
        let tag_of = |revision| tag.filter(|_| latest.tagged == revision);
        add(latest.settled, percent - part, tag_of(latest.settled))?;
        if let Some((candidate, _)) = latest
            .candidate
            .filter(|(candidate, _)| part > 0 || tag_of(*candidate).is_some())
        {
            add(candidate, part, tag_of(candidate))?;
        } else if latest.tagged != latest.settled {
            add(latest.tagged, 0, tag)?;
        }
    }
    TrafficSplit::new(out).ok()
}

#[cfg(test)]
#[path = "declared_tests.rs"]
mod tests;
