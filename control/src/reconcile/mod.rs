//! The reconciler: publishes changes of the source, or rejects them.
//!
//! refresh → index → propose; no change? stop → prepare → publish → scale → commit. A failure before publish leaves the last
//! good state serving, and all mistakes are logged at once.

mod fixed;

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;

use sluice_model::{Delta, Generation, Settings};
use tokio::time::Instant;

use crate::compile::{FileReference, ListenerReference};
use crate::config::Diagnostics;
use crate::index::{Index, Policy, Step};
use crate::plan::PlanDelta;
use crate::source::{Change, Event, Source, SourceError};

pub use fixed::fixed_changes;

/// The outcome of one reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// A change was published as this Generation.
    Applied(Generation),
    /// The objects have not changed.
    Unchanged,
    /// Rejected for this many mistakes; the last published state continues.
    Rejected(usize),
}

/// Applies a change to the data plane, which the control plane does not know, and to the scaler. A trait, because the
/// composition root implements it, and tests. Called from one blocking thread at a time.
pub trait ChangeSink: Send + 'static {
    /// Prepares new settings, such as binding listeners, before anything is published. `places` has the position of each
    /// listener in the configuration.
    ///
    /// # Errors
    /// What cannot be prepared (an address that is taken), each in one line. Everything prepared is undone, and nothing
    /// changes.
    fn prepare(&mut self, next: &Settings, places: &[ListenerReference]) -> Result<(), Vec<String>>;

    /// Publishes a change of the routing table, atomically for requests. Returns the new Generation.
    ///
    /// # Errors
    /// The change contradicts the table, which stays as it is.
    fn publish(&mut self, delta: &Delta) -> Result<Generation, String>;

    /// Applies a change of the scaling plan; called after the publication that it belongs to.
    fn scale(&mut self, plan: &PlanDelta);

    /// Reads named files (certificates) again: an operator asked for a reload, and the objects have not changed.
    fn reread(&mut self) {}

    /// Reports an event of a file that objects name.
    fn touched(&mut self) {}

    /// Reports the outcome of a reload, for metrics.
    fn outcome(&mut self, _outcome: ReloadOutcome) {}
}

/// Returns the value of a variable that objects use; `None` when it is not set.
pub type Environment = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// An error of the first load.
#[derive(Debug)]
pub enum LoadError {
    /// Objects cannot be read.
    Source(Vec<SourceError>),
    /// Objects have mistakes.
    Mistakes(Diagnostics),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(errors) => f.write_str(&lines(errors)),
            Self::Mistakes(mistakes) => write!(f, "{mistakes}"),
        }
    }
}

impl std::error::Error for LoadError {}

fn lines<T: fmt::Display>(all: &[T]) -> String {
    let shown: Vec<_> = all.iter().map(T::to_string).collect();
    shown.join("\n")
}

/// The result of the first load, not yet published.
pub struct Loaded<S> {
    source: S,
    index: Index,
    env: Environment,
    first: Step,
}

impl<S: Source> Loaded<S> {
    /// Reads and compiles for the first time. Blocks; for the start, before anything serves. `progress` is called now and then
    /// with the number of compiled objects and of all objects.
    ///
    /// # Errors
    /// [`LoadError`]: an object cannot be read, or has mistakes.
    pub fn first(
        mut source: S,
        env: Environment,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, LoadError> {
        let events = source.refresh().map_err(LoadError::Source)?;
        let mut index = Index::new(Policy::AllOrNothing);
        index.apply_first(events, &*env, &mut progress);
        let found = index.diagnostics();
        let Some(first) = index.propose().filter(|_| found.errors() == 0) else {
            return Err(LoadError::Mistakes(found));
        };
        warn_all(found.items());
        Ok(Self {
            source,
            index,
            env,
            first,
        })
    }

    /// The loaded services, as a change of an empty table, to be published by the caller.
    pub fn delta(&self) -> &Delta {
        &self.first.delta
    }

    /// Files that the configuration names, for a check by the data plane.
    pub fn files(&self) -> Vec<FileReference> {
        self.index.files()
    }

    /// Makes the reconciler, after the loaded services were published as this Generation.
    pub fn attach<P: ChangeSink>(mut self, mut applier: P, published: Generation) -> Reconciler<S, P> {
        applier.scale(&self.first.plan);
        applier.outcome(ReloadOutcome::Applied(published));
        let settings = Arc::clone(&self.first.delta.settings);
        self.index.commit(self.first);
        self.source.also_watch(&named(&self.index));
        Reconciler {
            source: self.source,
            index: self.index,
            env: self.env,
            applier,
            half: false,
            generation: published,
            bound: Arc::clone(&settings),
            settings,
            unreadable: None,
            not_applied: Vec::new(),
        }
    }
}

/// Keeps the published state equal to the objects of the source.
pub struct Reconciler<S, P> {
    source: S,
    index: Index,
    env: Environment,
    applier: P,
    /// The last read may be the first half of a change; the second half is awaited.
    half: bool,
    /// The Generation published last.
    generation: Generation,
    /// The settings published last.
    settings: Arc<Settings>,
    /// The settings that admin and health sockets were bound by.
    bound: Arc<Settings>,
    /// The last error of the source, until a read succeeds: logged once, not at every event.
    unreadable: Option<String>,
    /// Changes that need a restart, as logged last.
    not_applied: Vec<String>,
}

/// The outcome of one look at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookOutcome {
    /// A poll without a change.
    Nothing,
    /// Possibly the first half of a change; the second half is awaited.
    Half,
    Done(ReloadOutcome),
}

impl<S: Source, P: ChangeSink> Reconciler<S, P> {
    /// Follows the source until the future is dropped. Reading, compiling and publishing run on a blocking thread, never on a
    /// worker that serves requests. A reload under way completes even when the future is dropped.
    pub async fn run(mut self) {
        let mut outcome = LookOutcome::Nothing;
        loop {
            let change = match outcome {
                LookOutcome::Half => self.source.settled().await,
                LookOutcome::Nothing | LookOutcome::Done(_) => self.source.changed().await,
            };
            let step = tokio::task::spawn_blocking(move || {
                let outcome = self.step(change);
                (self, outcome)
            });
            (self, outcome) = match step.await {
                Ok(back) => back,
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // The runtime is going away.
                Err(_) => return,
            };
        }
    }

    /// One look at the source.
    fn step(&mut self, change: Change) -> LookOutcome {
        let start = Instant::now();
        let outcome = match self.source.refresh() {
            Err(errors) => match self.cannot_read(&errors, change) {
                Some(outcome) => outcome,
                None => return LookOutcome::Nothing,
            },
            Ok(events) => {
                let recovered = self.unreadable.take().is_some();
                if recovered {
                    tracing::info!("config files can be read again");
                }
                let touched = events.contains(&Event::Touched);
                if touched {
                    self.applier.touched();
                }
                let is_news = !touched || events.len() > 1;
                let differs = self.index.apply(events, &*self.env) || std::mem::take(&mut self.half);
                match (differs, change) {
                    (false, Change::Poll) if !recovered => return LookOutcome::Nothing,
                    // An event of a certificate alone is no reload.
                    (false, Change::Event) if !is_news => return LookOutcome::Nothing,
                    (false, Change::Poll | Change::Event | Change::Complete) => ReloadOutcome::Unchanged,
                    // An operator's reload runs even without a change: mistakes are logged again.
                    (true, _) | (false, Change::Reload) => match self.reload(change, start) {
                        Some(outcome) => outcome,
                        None => return LookOutcome::Half,
                    },
                }
            }
        };
        self.applier.outcome(outcome);
        LookOutcome::Done(outcome)
    }

    fn cannot_read(&mut self, errors: &[SourceError], change: Change) -> Option<ReloadOutcome> {
        let text = lines(errors);
        let known = self.unreadable.as_ref() == Some(&text);
        if known && change == Change::Poll {
            return None;
        }
        if !known || change == Change::Reload {
            self.reject(errors);
        }
        self.unreadable = Some(text);
        Some(ReloadOutcome::Rejected(errors.len()))
    }

    /// Publishes or rejects the pending change. `None`: the change came without the usual quiet time, and removes something
    /// or has a mistake, so it may be half of one.
    fn reload(&mut self, change: Change, start: Instant) -> Option<ReloadOutcome> {
        let found = self.index.diagnostics();
        let step = self.index.propose();
        let takes_away = step.as_ref().is_none_or(|step| step.takes_away);
        if change == Change::Complete && takes_away {
            self.half = true;
            return None;
        }
        let Some(step) = step else {
            return Some(self.reject(found.items()));
        };
        warn_all(found.items());
        if step.is_empty {
            self.index.commit(step);
            if change == Change::Reload {
                self.applier.reread();
            }
            tracing::info!(generation = %self.generation, "config unchanged");
            return Some(ReloadOutcome::Unchanged);
        }
        let settings = Arc::clone(&step.delta.settings);
        let other_settings = !Arc::ptr_eq(&settings, &self.settings);
        if other_settings && let Err(refused) = self.applier.prepare(&settings, &self.index.listeners()) {
            return Some(self.reject(&refused));
        }
        self.generation = match self.applier.publish(&step.delta) {
            Ok(generation) => generation,
            Err(error) => return Some(self.reject(&[format!("internal error: {error}")])),
        };
        self.applier.scale(&step.plan);
        let (changed, removed) = (step.delta.services.len(), step.delta.removed.len());
        self.index.commit(step);
        if other_settings {
            self.settings = Arc::clone(&settings);
            self.source.also_watch(&named(&self.index));
            self.log_restart_only(&settings);
        }
        tracing::info!(
            generation = %self.generation,
            services = self.index.services(),
            revisions = self.index.revisions(),
            changed,
            removed,
            took = ?start.elapsed(),
            "config applied"
        );
        Some(ReloadOutcome::Applied(self.generation))
    }

    fn log_restart_only(&mut self, next: &Settings) {
        let fixed = fixed_changes(&self.bound, next);
        if fixed != self.not_applied {
            warn_all(&fixed);
            self.not_applied = fixed;
        }
    }

    fn reject<E: fmt::Display>(&self, mistakes: &[E]) -> ReloadOutcome {
        for mistake in mistakes {
            tracing::error!("{mistake}");
        }
        let count = mistakes.len();
        tracing::error!(
            generation = %self.generation,
            "config rejected ({count} to fix): the last good one goes on"
        );
        ReloadOutcome::Rejected(count)
    }
}

/// The files to be watched: those of the settings. The files of a backend's TLS are watched by the data plane.
fn named(index: &Index) -> Vec<std::path::PathBuf> {
    index.settings_files().into_iter().map(|file| file.file).collect()
}

// By hand: the environment, a closure, has no text.
impl<S> fmt::Debug for Loaded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl<S, P> fmt::Debug for Reconciler<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconciler")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

fn warn_all<W: fmt::Display>(warnings: &[W]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests;
