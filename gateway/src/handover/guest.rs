//! The older process: it gives out no slot by itself any more.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::wire::{Answer, Desk, ToGuest, ToHost};
use crate::registry::Registry;
use crate::throttle::{News, RevisionThrottler, clock};

/// Messages sent together.
const BATCH: usize = 256;

/// The older process's throttlers, all of them flipped. Ends in [`take_back`](Self::take_back) or
/// [`abandon`](Self::abandon), or with the process.
#[derive(Debug)]
pub struct Guest {
    desks: Vec<Arc<RevisionThrottler>>,
    news: mpsc::UnboundedReceiver<(u32, News)>,
}

impl Guest {
    /// Flips every throttler and says what they have. Whoever arrives from now on waits. The table
    /// must not change after it: a revision that appears would have a throttler of its own.
    pub fn flip(registry: &Registry) -> (Self, Vec<Desk>) {
        let (sender, news) = mpsc::unbounded_channel();
        let mut desks = Vec::new();
        let mut said = Vec::new();
        let all = registry.all_live();
        // Waking one takes longer than flipping it, and lets nobody wait.
        for live in &all {
            live.throttler();
        }
        for (number, live) in (0..).zip(all) {
            let throttler = Arc::clone(live.throttler());
            let endpoints = throttler.flip(number, sender.clone(), clock());
            said.push(Desk::new(&live, &endpoints));
            desks.push(throttler);
        }
        (Self { desks, news }, said)
    }

    /// The next messages for the host; empty when there will be none. Ask only once the host has
    /// acknowledged: what it grants cannot be taken back. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Vec<ToHost> {
        let mut batch = Vec::new();
        self.news.recv_many(&mut batch, BATCH).await;
        let now = clock();
        let batch = batch.iter();
        batch.map(|(desk, news)| ToHost::new(*desk, news, now)).collect()
    }

    /// The host answers.
    pub fn hear(&self, message: ToGuest) {
        // A desk that does not exist would be the host's mistake: nobody waits there.
        let Some(desk) = self.desks.get(message.desk as usize) else {
            return;
        };
        match message.answer {
            Answer::Grant(id) => desk.granted(message.want, &(&id).into(), clock()),
            Answer::Reject(refusal) => desk.refused(message.want, refusal.into(), clock()),
        }
    }

    /// The newer process did not come to serve: this one gives slots out again, and whoever came
    /// meanwhile gets one.
    pub fn take_back(self) {
        for desk in &self.desks {
            desk.flip_back(clock());
        }
    }

    /// The newer process is gone after it took over: what is in flight goes on, everybody else is
    /// told that this process is draining.
    pub fn abandon(self) {
        for desk in &self.desks {
            desk.abandon(clock());
        }
    }
}
