//! Reconciliation of a revision's instances with the desired number: starts, retirements, and replacement after a changed
//! plan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::InstanceId;

use super::instance::{Instance, Phase, same_launch};
use super::{ProcessAction, ProcessState};
use crate::plan::ScalingMode;
use crate::scale::InstanceOrder;
use crate::scale::events::{EndpointAction, IdSource};
use crate::scale::needs::NeedsGate;

impl ProcessState {
    /// Starts and retires instances toward the goal.
    pub(super) fn reconcile(&mut self, now: Instant, ids: &mut IdSource, todo: &mut Vec<ProcessAction>) {
        if self.removed {
            let rest = self.ids(Instance::is_live);
            self.discard(rest, now, todo);
            return;
        }
        let wanted = self.wanted();
        let goal = self.goal();
        if self.backoff.remaining(now).is_none() && self.current() < goal {
            match self.needs.pass(&self.plan.needs, self.any(Instance::is_live)) {
                Ok(true) => {
                    for _ in self.current()..goal {
                        self.start(now, ids, todo);
                    }
                    self.needs = NeedsGate::Closed;
                }
                Ok(false) => {}
                Err(needs) => todo.push(EndpointAction::Expect(needs).into()),
            }
        } else if goal == 0 {
            self.needs = NeedsGate::Closed;
        }
        let replaced = self.replaced();
        if wanted > 0 && !replaced.is_empty() {
            let ready = count(
                self.ids(|i| i.is_ready() && same_launch(&i.plan, &self.plan))
                    .len(),
            );
            let surplus = (ready + count(replaced.len())).saturating_sub(goal) as usize;
            // A replaced instance is kept until a new one is ready.
            let surplus = if ready == 0 { 0 } else { surplus };
            let out = replaced.into_iter().take(surplus).collect();
            self.discard(out, now, todo);
            return;
        }
        self.shrink(wanted, now, todo);
    }

    pub(super) fn shrink(&mut self, wanted: u32, now: Instant, todo: &mut Vec<ProcessAction>) {
        let surplus = count(self.ids(Instance::is_live).len()).saturating_sub(wanted);
        if surplus == 0 || self.retire_again.is_some() {
            return;
        }
        if wanted == 0 {
            todo.push(
                EndpointAction::Retire {
                    count: surplus,
                    to_zero: true,
                }
                .into(),
            );
            return;
        }
        // The youngest starting instances go first: they serve no request yet.
        let mut starting = self.ids(Instance::is_starting);
        let cancelled = starting.split_off(starting.len().saturating_sub(surplus as usize));
        let rest = surplus - count(cancelled.len());
        self.discard(cancelled, now, todo);
        if rest > 0 {
            todo.push(
                EndpointAction::Retire {
                    count: rest,
                    to_zero: false,
                }
                .into(),
            );
        }
    }

    pub(super) fn start(&mut self, now: Instant, ids: &mut IdSource, todo: &mut Vec<ProcessAction>) {
        let id = ids.instance();
        let phase = Phase::Starting {
            since: now,
            deadline: now + self.plan.start_timeout,
        };
        let plan = Arc::clone(&self.plan);
        todo.push(InstanceOrder::Start(id, Arc::clone(&plan)).into());
        let instance = Instance {
            phase,
            plan,
            added: false,
            timed_out: false,
        };
        self.instances.insert(id, instance);
        self.starts += 1;
    }

    /// Removes the endpoint, then stops the instance, so that no request is sent to a stopping instance.
    pub(super) fn stop(&mut self, id: InstanceId, grace: Option<Duration>, todo: &mut Vec<ProcessAction>) {
        if let Some(instance) = self.instances.get_mut(&id).filter(|i| i.phase != Phase::Stopping) {
            instance.phase = Phase::Stopping;
            todo.push(EndpointAction::Remove(id).into());
            todo.push(InstanceOrder::Stop(id, grace.unwrap_or_else(|| instance.grace())).into());
        }
    }

    pub(super) fn stop_where(&mut self, which: impl Fn(&Instance) -> bool, todo: &mut Vec<ProcessAction>) {
        for id in self.ids(which) {
            self.stop(id, None, todo);
        }
    }

    /// Retires exactly these instances. Instances without an endpoint are stopped at once; the others drain, because the data
    /// plane may have just sent them a request.
    pub(super) fn discard(&mut self, ids: Vec<InstanceId>, now: Instant, todo: &mut Vec<ProcessAction>) {
        let deadline = now + self.drain;
        let mut retired = Vec::new();
        for id in ids {
            match self.instances.get_mut(&id) {
                Some(instance) if instance.added => {
                    instance.phase = Phase::Retired { deadline };
                    retired.push(id);
                }
                _ => self.stop(id, None, todo),
            }
        }
        if !retired.is_empty() {
            todo.push(EndpointAction::RetireThese(retired).into());
        }
    }

    pub(super) fn wanted(&self) -> u32 {
        if self.removed {
            return 0;
        }
        let policy = &self.plan.policy;
        match policy.mode {
            ScalingMode::Active => policy.within(self.desired, self.plan.reachable),
            // What runs already is kept at its number.
            ScalingMode::Observe => self.desired,
        }
    }

    pub(super) fn most(&self) -> u32 {
        self.plan.policy.highest()
    }

    /// The number of instances that the present plan should have: the desired number, and during a replacement at least the
    /// number of replaced instances, so that none goes before its successor is ready.
    pub(super) fn goal(&self) -> u32 {
        match self.wanted() {
            0 => 0,
            wanted => wanted.max(count(self.replaced().len())).min(self.most()),
        }
    }

    pub(super) fn current(&self) -> u32 {
        count(
            self.ids(|i| i.is_live() && same_launch(&i.plan, &self.plan))
                .len(),
        )
    }

    /// Ready instances of an earlier plan.
    pub(super) fn replaced(&self) -> Vec<InstanceId> {
        self.ids(|i| i.is_ready() && !same_launch(&i.plan, &self.plan))
    }

    pub(super) fn ids(&self, which: impl Fn(&Instance) -> bool) -> Vec<InstanceId> {
        let chosen = self.instances.iter().filter(|(_, instance)| which(instance));
        chosen.map(|(&id, _)| id).collect()
    }

    pub(super) fn any(&self, which: impl Fn(&Instance) -> bool) -> bool {
        self.instances.values().any(which)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
