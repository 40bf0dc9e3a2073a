//! The state machine of a rollout. No clock, no I/O: what was seen and how much time passed is passed in.

use std::time::Duration;

use super::judge::{Verdict, judge, progress};
use super::policy::{JudgePolicy, RolloutPolicy, Steps};
use super::seen::{Seen, Side};
use super::{Rollout, RolloutState, WHOLE, steps};
use crate::release::{Release, ServiceHistory};

/// A step that is not judged ends after this multiple of its length.
const OVERTIME: u32 = 10;

/// A tick may come early by this, after one that came late.
const JITTER: Duration = Duration::from_millis(20);

/// Knative's `progress-deadline`: a candidate whose starts fail for this long has failed. A settled revision that lacks instances for
/// this long is waited for no more: the candidate may be what mends it.
const DEADLINE: Duration = Duration::from_secs(600);

/// What lasts this long, the autoscaler's usual window, is no accident: an instance that stays up, a revision that was scaled down.
const SETTLED: Duration = Duration::from_secs(60);

/// What happened: something to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The candidate was ready for the first time: tags follow.
    Ready,
    /// The candidate has a greater share.
    Step,
    /// What the rollout waits for changed.
    Waits,
    /// The candidate has all of the share, and is the settled revision from now on.
    Completed,
    /// The candidate is worse, or cannot start: the settled revision has all of the share.
    Failed,
}

/// The latest revision, if it has neither the share nor a rollout yet.
pub(crate) fn wanted(release: &Release) -> Option<&str> {
    let latest = release.revisions.last()?.name();
    let history = &release.history;
    let is_gated = release.is_manifest || release.policy.is_some();
    let is_new = history
        .settled
        .as_deref()
        .is_some_and(|settled| settled != latest);
    let is_known = history
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.candidate == latest);
    (is_gated && is_new && !is_known && history.pinned(release.digest).is_none()).then_some(latest)
}

/// The history with a rollout of the latest revision, if that has none; a rollout of an older one is superseded. `now` is in
/// seconds since 1970.
pub fn begin(release: &Release, now: u64) -> Option<ServiceHistory> {
    let candidate = wanted(release)?;
    Some(ServiceHistory {
        rollout: Some(Rollout::new(candidate, now)),
        ..(*release.history).clone()
    })
}

/// The history without its rollout, if that is open and its candidate is no longer the latest revision, nor another one about to be
/// rolled out.
pub(crate) fn give_up(release: &Release) -> Option<ServiceHistory> {
    let rollout = release
        .history
        .rollout
        .as_ref()
        .filter(|rollout| rollout.state.is_open())?;
    let is_latest = release
        .revisions
        .last()
        .is_some_and(|latest| latest.name() == rollout.candidate);
    (!is_latest && wanted(release).is_none()).then(|| ServiceHistory {
        rollout: None,
        ..(*release.history).clone()
    })
}

/// What a rollout goes by.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'r> {
    /// `None`: at once, when the candidate was ready.
    pub policy: Option<&'r RolloutPolicy>,
    /// The name of the settled revision.
    pub base: &'r str,
    /// What `latestRevision` targets have of the traffic, in hundredths of a percent.
    pub of: u32,
}

impl Rules<'_> {
    fn judge(&self) -> Option<&JudgePolicy> {
        self.policy.map(|policy| &policy.judge)
    }
}

impl Rollout {
    /// Moves the rollout by what was seen in `elapsed`. `now` is in seconds since 1970.
    pub fn tick(&mut self, rules: Rules<'_>, seen: &Seen, elapsed: Duration, now: u64) -> Option<Event> {
        if !self.state.is_open() {
            return None;
        }
        self.fleet = self.fleet.max(seen.base.ready);
        self.watch(seen, elapsed);
        if let Some(policy) = rules.judge() {
            // Without a share there are requests by tag alone: those of somebody who tries something.
            match self.share {
                0 => self.evidence.add_base(&seen.base),
                _ => self.evidence.add(&seen.candidate, &seen.base, policy),
            }
            if let Verdict::Worse(why) = judge(&self.evidence, policy, rules.base) {
                self.enter(RolloutState::Failed, now, Some(why));
                return Some(Event::Failed);
            }
        }
        let first_ready = !self.ready && seen.candidate.ready > 0;
        self.ready |= first_ready;
        if self.state == RolloutState::Running {
            let before = self.reason.clone();
            self.spend(elapsed, seen.start_failure.is_some());
            let event = self.advance(rules, seen, now);
            if event.is_some() {
                return event;
            }
            if self.reason != before && !first_ready {
                return Some(Event::Waits);
            }
        }
        first_ready.then_some(Event::Ready)
    }

    fn spend(&mut self, elapsed: Duration, is_failing: bool) {
        self.spent = self.spent.saturating_add(millis(elapsed));
        if self.watch.up >= millis(SETTLED) {
            self.failing = 0;
        } else if is_failing || self.failing > 0 {
            self.failing = self.failing.saturating_add(millis(elapsed));
        }
    }

    fn watch(&mut self, seen: &Seen, elapsed: Duration) {
        let lasts = |before: u64, is_so: bool| match is_so {
            true => before.saturating_add(millis(elapsed)),
            false => 0,
        };
        let base = &seen.base;
        self.watch.up = lasts(self.watch.up, seen.candidate.ready > 0);
        let is_steady = base.wanted.is_some_and(|wanted| base.ready >= wanted);
        self.watch.steady = lasts(self.watch.steady, is_steady);
        self.watch.short = lasts(self.watch.short, base.ready < self.base_size(base));
    }

    /// Instances that the settled revision should have. One that lost some to a crash or a restart had them a moment ago, one that
    /// was scaled down has for a while what it wants.
    fn base_size(&self, base: &Side) -> u32 {
        let left = f64::from(WHOLE.saturating_sub(self.share)) / f64::from(WHOLE);
        let of_fleet = whole(f64::from(self.fleet) * left);
        match base.wanted {
            Some(wanted) if self.watch.steady >= millis(SETTLED) => wanted,
            Some(wanted) => wanted.max(of_fleet),
            None => of_fleet,
        }
    }

    fn advance(&mut self, rules: Rules<'_>, seen: &Seen, now: u64) -> Option<Event> {
        let spent = Duration::from_millis(self.spent);
        if let (0, Some(why)) = (seen.candidate.ready, &seen.start_failure)
            && self.failing >= millis(DEADLINE)
        {
            let verb = if self.ready { "stays" } else { "became" };
            let why = format!("no instance {verb} ready: {why}");
            self.enter(RolloutState::Failed, now, Some(why));
            return Some(Event::Failed);
        }
        let (share, every) = self.next(rules);
        if spent + JITTER < every {
            self.reason = None;
            return None;
        }
        let need = self.need(rules, seen, share);
        if seen.candidate.ready < need {
            self.reason = Some(match (&seen.start_failure, need) {
                (Some(why), _) if !self.ready => format!("waits for a ready instance: {why}"),
                (_, 1) => "waits for a ready instance".to_owned(),
                _ => format!("waits for {need} ready instances"),
            });
            return None;
        }
        self.reason = self.lack(rules, seen);
        if self.reason.is_some() {
            return None;
        }
        if self.step > 0 {
            let is_judged = self.is_judged(rules);
            if !is_judged && spent < every.saturating_mul(OVERTIME) {
                return None;
            }
            self.unjudged += u32::from(!is_judged);
        } else if let Some(Steps::Within(duration)) = rules.policy.map(|policy| &policy.steps) {
            self.pace = Some(steps::pace(*duration, spent, rules.of));
        }
        self.share = self.next(rules).0;
        self.step += 1;
        self.spent = 0;
        self.evidence.begin_step();
        if self.share < WHOLE {
            return Some(Event::Step);
        }
        self.enter(RolloutState::Completed, now, None);
        Some(Event::Completed)
    }

    /// What no step passes without, judged or not.
    fn lack(&self, rules: Rules<'_>, seen: &Seen) -> Option<String> {
        rules.policy.filter(|_| rules.of > 0)?;
        let base = &seen.base;
        let size = self.base_size(base);
        if base.ready < size && self.watch.short < millis(DEADLINE) {
            let ready = base.ready;
            return Some(format!(
                "waits for {}: {ready} of {size} instances are ready",
                rules.base
            ));
        }
        let evidence = &self.evidence;
        let has_requests = evidence.in_step > 0 || seen.candidate.in_flight > 0;
        (self.step > 0 && has_requests && evidence.answers_in_step == 0)
            .then(|| "waits for a good answer of the new revision".to_owned())
    }

    /// Whether the present step was judged, and not as unclear.
    fn is_judged(&self, rules: Rules<'_>) -> bool {
        let Some(policy) = rules.policy else { return true };
        // Knative's steps go by time alone, and may be as short as a second.
        let is_listed = matches!(policy.steps, Steps::Listed { .. });
        let is_enough = !is_listed || self.evidence.in_step >= policy.judge.min_requests;
        is_enough && judge(&self.evidence, &policy.judge, rules.base) == Verdict::Fine
    }

    /// The share after the present step, and the step's length.
    fn next(&self, rules: Rules<'_>) -> (u32, Duration) {
        match rules.policy {
            Some(policy) if rules.of > 0 => {
                let next = steps::next(self, &policy.steps, rules.of);
                (next.share, next.every)
            }
            _ => (WHOLE, Duration::ZERO),
        }
    }

    /// Ready instances of the candidate that a share needs.
    fn need(&self, rules: Rules<'_>, seen: &Seen, share: u32) -> u32 {
        let Some(policy) = rules.policy.filter(|_| rules.of > 0) else {
            return 1;
        };
        let base = f64::from(seen.base.ready.max(self.base_size(&seen.base)));
        let left = f64::from(WHOLE.saturating_sub(self.share)) / f64::from(WHOLE);
        // What the base has now serves what is left to it. After a step it has more than that for a while, so there were never
        // more instances needed than it once had.
        let all = if left > 0.0 { base / left } else { base };
        let all = all.min(f64::from(self.fleet)).max(base);
        let part = f64::from(share) / f64::from(WHOLE);
        let need = whole(all * part * policy.min_ready).max(1);
        need.min(seen.candidate.most.unwrap_or(u32::MAX)).max(1)
    }

    /// The least number of instances that the candidate has to have now: what it serves, and in the second half of a step what the
    /// next one needs.
    pub fn floor(&self, rules: Rules<'_>, seen: &Seen) -> u32 {
        let (next, every) = self.next(rules);
        let is_near = self.state == RolloutState::Running && Duration::from_millis(self.spent) * 2 >= every;
        self.need(rules, seen, if is_near { next } else { self.share })
    }

    /// How far the evidence is on the way to "worse": 0 is none, 1 is certain.
    pub fn suspicion(&self, policy: &RolloutPolicy) -> f64 {
        progress(&self.evidence, &policy.judge)
    }
}

/// The number of instances that so many are rounded to, upwards but for rounding errors.
fn whole(instances: f64) -> u32 {
    (instances - 1e-6).ceil() as u32
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
