//! From "an object may have changed" to a published change, or to a clear no.
//!
//! refresh → index → propose; nothing? stop → prepare → publish → scale → commit. Whatever goes wrong
//! before publish leaves the last good state serving, and everything that is wrong is said at once.

mod fixed;

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Instant;

use sluice_model::{Delta, Generation, Settings};

use crate::compile::{FileReference, ListenerReference};
use crate::config::Diagnostics;
use crate::index::{Index, Policy, Step};
use crate::plan::PlanDelta;
use crate::source::{Change, Event, Source, SourceError};

pub use fixed::fixed_changes;

/// What became of a look at the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// Published as this Generation.
    Applied(Generation),
    /// The objects say what they said.
    Unchanged,
    /// This many mistakes; what was published last goes on.
    Rejected(usize),
}

/// Everybody whom a change concerns: the data plane, which the control plane does not know, and the
/// scaler. Called from one blocking thread at a time.
pub trait Parties: Send + 'static {
    /// Makes ready for these settings; `places` has where each listener stands. Called before anything is
    /// published.
    ///
    /// # Errors
    /// What cannot be had (an address that is taken), each in one line. Nothing changes
    /// then, and whoever refuses has undone what it did.
    fn prepare(&mut self, next: &Settings, places: &[ListenerReference]) -> Result<(), Vec<String>>;

    /// Edits the table that requests read: they see all of it from now on. Returns its Generation.
    ///
    /// # Errors
    /// It contradicts the table, which stays as it is.
    fn publish(&mut self, delta: &Delta) -> Result<Generation, String>;

    /// Scales like this from now on; called after the publication of what it belongs to.
    fn scale(&mut self, plan: &PlanDelta);

    /// An operator asked for a reload, and the objects say what they said: what they only name
    /// (certificates) may still be read anew.
    fn reread(&mut self) {}

    /// Something happened to a file that objects name.
    fn touched(&mut self) {}

    /// For metrics.
    fn outcome(&mut self, _outcome: ReloadOutcome) {}
}

/// Gives the value of a variable that objects use.
pub type Environment = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Why there is nothing to start with.
#[derive(Debug)]
pub enum LoadError {
    /// Objects cannot be read.
    Source(Vec<SourceError>),
    /// They say something wrong.
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

/// The first load, not yet in anybody's hands.
pub struct Loaded<S> {
    source: S,
    index: Index,
    env: Environment,
    first: Step,
}

impl<S: Source> Loaded<S> {
    /// Reads and compiles for the first time. Blocks; meant for start, before anything serves.
    /// `progress` is told now and then how many objects of how many are done.
    ///
    /// # Errors
    /// [`LoadError`]: there is nothing to start with.
    pub fn first(
        mut source: S,
        env: Environment,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, LoadError> {
        let events = source.refresh().map_err(LoadError::Source)?;
        let mut index = Index::new(Policy::AllOrNothing);
        index.apply_first(events, &*env, &mut progress);
        let told = index.diagnostics();
        let Some(first) = index.propose().filter(|_| told.errors() == 0) else {
            return Err(LoadError::Mistakes(told));
        };
        warn_all(told.items());
        Ok(Self {
            source,
            index,
            env,
            first,
        })
    }

    /// What was loaded, as a change of an empty table: for whoever publishes it.
    pub fn delta(&self) -> &Delta {
        &self.first.delta
    }

    /// Files that the configuration names, for whoever can read files to check.
    pub fn files(&self) -> Vec<FileReference> {
        self.index.files()
    }

    /// Goes on from what was loaded, which was published as this Generation.
    pub fn attach<P: Parties>(mut self, mut parties: P, published: Generation) -> Reconciler<S, P> {
        parties.scale(&self.first.plan);
        parties.outcome(ReloadOutcome::Applied(published));
        let settings = Arc::clone(&self.first.delta.settings);
        self.index.commit(self.first);
        self.source.also_watch(&named(&self.index));
        Reconciler {
            source: self.source,
            index: self.index,
            env: self.env,
            parties,
            half: false,
            generation: published,
            bound: Arc::clone(&settings),
            settings,
            unreadable: None,
            not_applied: Vec::new(),
        }
    }
}

/// Keeps what is served equal to what the objects say.
pub struct Reconciler<S, P> {
    source: S,
    index: Index,
    env: Environment,
    parties: P,
    /// What was read last waits for its second half.
    half: bool,
    /// Published last.
    generation: Generation,
    /// Published last.
    settings: Arc<Settings>,
    /// What sockets were bound by.
    bound: Arc<Settings>,
    /// What the source said when it failed last, until it is well again: said once, not at every
    /// event.
    unreadable: Option<String>,
    /// Changes that wait for a restart, as last said.
    not_applied: Vec<String>,
}

/// What a look led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    /// It was time for a look, and there is nothing to tell.
    Nothing,
    /// It may be the first half of a change; the second one is waited for.
    Half,
    Done(ReloadOutcome),
}

impl<S: Source, P: Parties> Reconciler<S, P> {
    /// Follows the source for as long as it is polled. Reading, compiling and publishing happen on
    /// a blocking thread, never on a worker that serves requests. Dropped in the middle of a
    /// reload, that reload still ends, published or not.
    pub async fn run(mut self) {
        let mut looked = Looked::Nothing;
        loop {
            let change = match looked {
                Looked::Half => self.source.settled().await,
                Looked::Nothing | Looked::Done(_) => self.source.changed().await,
            };
            let step = tokio::task::spawn_blocking(move || {
                let looked = self.step(change);
                (self, looked)
            });
            (self, looked) = match step.await {
                Ok(back) => back,
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // The runtime is going away.
                Err(_) => return,
            };
        }
    }

    /// One look at the source.
    fn step(&mut self, change: Change) -> Looked {
        let start = Instant::now();
        let outcome = match self.source.refresh() {
            Err(errors) => match self.cannot_read(&errors, change) {
                Some(outcome) => outcome,
                None => return Looked::Nothing,
            },
            Ok(events) => {
                let recovered = self.unreadable.take().is_some();
                if recovered {
                    tracing::info!("config files can be read again");
                }
                let touched = events.contains(&Event::Touched);
                if touched {
                    self.parties.touched();
                }
                let is_news = !touched || events.len() > 1;
                let differs = self.index.apply(events, &*self.env) || std::mem::take(&mut self.half);
                match (differs, change) {
                    (false, Change::Poll) if !recovered => return Looked::Nothing,
                    // A certificate is no reload.
                    (false, Change::Event) if !is_news => return Looked::Nothing,
                    (false, Change::Poll | Change::Event | Change::Complete) => ReloadOutcome::Unchanged,
                    // Asked for, it is done, equal text or not: what is wrong is said again.
                    (true, _) | (false, Change::Reload) => match self.reload(change, start) {
                        Some(outcome) => outcome,
                        None => return Looked::Half,
                    },
                }
            }
        };
        self.parties.outcome(outcome);
        Looked::Done(outcome)
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

    /// `None`: a change that came without the usual quiet time takes something away or is wrong, and may
    /// be half of one.
    fn reload(&mut self, change: Change, start: Instant) -> Option<ReloadOutcome> {
        let told = self.index.diagnostics();
        let step = self.index.propose();
        let takes_away = step.as_ref().is_none_or(|step| step.takes_away);
        if change == Change::Complete && takes_away {
            self.half = true;
            return None;
        }
        let Some(step) = step else {
            return Some(self.reject(told.items()));
        };
        warn_all(told.items());
        if step.is_empty {
            self.index.commit(step);
            if change == Change::Reload {
                self.parties.reread();
            }
            tracing::info!(generation = %self.generation, "config unchanged");
            return Some(ReloadOutcome::Unchanged);
        }
        let settings = Arc::clone(&step.delta.settings);
        let other_settings = !Arc::ptr_eq(&settings, &self.settings);
        if other_settings && let Err(refused) = self.parties.prepare(&settings, &self.index.listeners()) {
            return Some(self.reject(&refused));
        }
        self.generation = match self.parties.publish(&step.delta) {
            Ok(generation) => generation,
            Err(error) => return Some(self.reject(&[format!("internal error: {error}")])),
        };
        self.parties.scale(&step.plan);
        let (changed, removed) = (step.delta.services.len(), step.delta.removed.len());
        self.index.commit(step);
        if other_settings {
            self.settings = Arc::clone(&settings);
            self.source.also_watch(&named(&self.index));
            self.say_what_is_fixed(&settings);
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

    fn say_what_is_fixed(&mut self, next: &Settings) {
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

/// The files whose changes are told: those of the settings. A backend's TLS looks at its own itself.
fn named(index: &Index) -> Vec<std::path::PathBuf> {
    index.settings_files().into_iter().map(|file| file.file).collect()
}

// By hand: an environment says nothing of itself.
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
