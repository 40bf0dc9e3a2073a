//! From "a file may have changed" to a published Snapshot, or to a clear no.
//!
//! refresh → load → equal? stop → prepare → publish → apply. Whatever goes wrong before publish
//! leaves the last good Generation serving, and everything that is wrong is said at once.

mod fixed;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Instant;

use sluice_model::{Delta, Generation, Settings, Snapshot};

use crate::plan::Plan;
use crate::source::{Change, Source, SourceError, SourceFile};

pub use fixed::fixed_changes;

/// What files were compiled into.
#[derive(Debug)]
pub struct Compiled {
    /// For the data plane.
    pub snapshot: Snapshot,
    /// For the control plane.
    pub plan: Plan,
    /// What is odd but not wrong, each in one line.
    pub warnings: Vec<String>,
}

/// What became of a look at the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// Published as this Generation.
    Applied(Generation),
    /// The files say what they said.
    Unchanged,
    /// This many mistakes; the last good Generation goes on.
    Rejected(usize),
}

/// Everybody whom a new Snapshot concerns. Called from one blocking thread at a time.
pub trait Parties: Send + 'static {
    /// Makes ready for these settings. Called before anything is published.
    ///
    /// # Errors
    /// What cannot be had (an address that is taken), each in one line. Nothing changes
    /// then, and whoever refuses has undone what it did.
    fn prepare(&mut self, next: &Settings) -> Result<(), Vec<String>>;

    /// Edits the table that requests read: they see all of it from now on. Returns its Generation.
    ///
    /// # Errors
    /// It contradicts the table, which stays as it is.
    fn publish(&mut self, delta: &Delta) -> Result<Generation, String>;

    /// Scales by this plan from now on; called after the publication of what it belongs to.
    fn apply(&mut self, plan: &Arc<Plan>);

    /// An operator asked for a reload and the files say what they said: what they only name
    /// (certificates) may still be read anew.
    fn reload_asked(&mut self) {}

    /// What was set differently but stays as it was bound at start; see [`fixed_changes`].
    fn fixed_changes(&self, bound: &Settings, next: &Settings) -> Vec<String> {
        fixed_changes(bound, next)
    }

    /// For metrics.
    fn outcome(&mut self, _outcome: ReloadOutcome) {}
}

/// Why there is no first Snapshot. `M` is a mistake with its place, as the loader reports it.
#[derive(Debug)]
pub enum LoadError<M> {
    /// Files cannot be read.
    Source(Vec<SourceError>),
    /// They say something wrong.
    Mistakes(Vec<M>),
}

impl<M: fmt::Display> fmt::Display for LoadError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(errors) => f.write_str(&lines(errors)),
            Self::Mistakes(mistakes) => f.write_str(&lines(mistakes)),
        }
    }
}

impl<M: fmt::Debug + fmt::Display> std::error::Error for LoadError<M> {}

fn lines<T: fmt::Display>(all: &[T]) -> String {
    let shown: Vec<_> = all.iter().map(T::to_string).collect();
    shown.join("\n")
}

/// The first load, not yet in anybody's hands.
pub struct Loaded<S, L> {
    source: S,
    load: L,
    snapshot: Snapshot,
    plan: Arc<Plan>,
}

impl<S, L> Loaded<S, L> {
    /// Reads and compiles for the first time. Blocks; meant for start, before anything serves.
    ///
    /// # Errors
    /// [`LoadError`]: there is nothing to start with.
    pub fn first<M>(mut source: S, mut load: L) -> Result<Self, LoadError<M>>
    where
        S: Source,
        L: FnMut(&[SourceFile]) -> Result<Compiled, Vec<M>> + Send + 'static,
    {
        source.refresh().map_err(LoadError::Source)?;
        let compiled = load(source.files()).map_err(LoadError::Mistakes)?;
        warn_all(&compiled.warnings);
        Ok(Self {
            source,
            load,
            snapshot: compiled.snapshot,
            plan: Arc::new(compiled.plan),
        })
    }

    /// What was loaded, as a change of an empty table: for whoever publishes it.
    pub fn first_delta(&self) -> Delta {
        let settings = self.snapshot.settings();
        let mut delta = Delta::between(&Snapshot::<()>::empty(Arc::clone(settings)), &self.snapshot);
        delta.settings = Arc::clone(settings);
        delta
    }

    /// How what was loaded is scaled.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Goes on from what was loaded, which was published as this Generation.
    pub fn attach<P: Parties>(self, mut parties: P, published: Generation) -> Reconciler<S, L, P> {
        parties.apply(&self.plan);
        parties.outcome(ReloadOutcome::Applied(published));
        let mut current = self.snapshot;
        current.generation = published;
        Reconciler {
            source: self.source,
            load: self.load,
            parties,
            bound: Arc::clone(current.settings()),
            current,
            plan: self.plan,
            unreadable: None,
            not_applied: Vec::new(),
        }
    }
}

/// Keeps what is served equal to what the files say.
pub struct Reconciler<S, L, P> {
    source: S,
    load: L,
    parties: P,
    current: Snapshot,
    plan: Arc<Plan>,
    /// What sockets were bound by.
    bound: Arc<Settings>,
    /// What the source said when it failed last, until it is well again: said once, not at every
    /// event.
    unreadable: Option<String>,
    /// Changes that wait for a restart, as last said.
    not_applied: Vec<String>,
}

impl<S, L, P, M> Reconciler<S, L, P>
where
    S: Source,
    L: FnMut(&[SourceFile]) -> Result<Compiled, Vec<M>> + Send + 'static,
    P: Parties,
    M: fmt::Display,
{
    /// Follows the source for as long as it is polled. Reading, compiling and preparing happen on
    /// a blocking thread, never on a worker that serves requests. Dropped in the middle of a
    /// reload, that reload still ends, published or not.
    pub async fn run(mut self) {
        loop {
            let change = self.source.changed().await;
            let step = tokio::task::spawn_blocking(move || {
                self.step(change);
                self
            });
            self = match step.await {
                Ok(back) => back,
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // The runtime is going away.
                Err(_) => return,
            };
        }
    }

    /// One look at the source. `None`: it was time for a look, and there is nothing to tell.
    fn step(&mut self, change: Change) -> Option<ReloadOutcome> {
        let outcome = match self.source.refresh() {
            Err(errors) => self.cannot_read(&errors, change)?,
            Ok(differs) => {
                let recovered = self.unreadable.take().is_some();
                if recovered {
                    tracing::info!("config files can be read again");
                }
                match (differs, change) {
                    (false, Change::Poll) if !recovered => return None,
                    (false, Change::Poll | Change::Event) => ReloadOutcome::Unchanged,
                    // Asked for, it is done, equal text or not: what is wrong is said again.
                    (true, _) | (false, Change::Reload) => self.reload(change),
                }
            }
        };
        self.parties.outcome(outcome);
        Some(outcome)
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

    fn reload(&mut self, change: Change) -> ReloadOutcome {
        let start = Instant::now();
        let files = self.source.files();
        // A bug in a parser costs this content, not all that come after it.
        let compiled = match catch_unwind(AssertUnwindSafe(|| (self.load)(files))) {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(mistakes)) => return self.reject(&mistakes),
            Err(_) => return self.reject(&["internal error: loading this config panicked"]),
        };
        warn_all(&compiled.warnings);
        let delta = Delta::between(&self.current, &compiled.snapshot);
        if delta.is_empty(&self.current) && compiled.plan == *self.plan {
            if change == Change::Reload {
                self.parties.reload_asked();
            }
            tracing::info!(generation = %self.current.generation, "config unchanged");
            return ReloadOutcome::Unchanged;
        }
        if let Err(refused) = self.parties.prepare(&delta.settings) {
            return self.reject(&refused);
        }
        // Unchanged services stay the same ones, pointer for pointer.
        let mut next = match self.current.edit(&delta, |_| ()) {
            Ok(next) => next,
            Err(error) => return self.reject(&[format!("internal error: {error}")]),
        };
        let generation = match self.parties.publish(&delta) {
            Ok(generation) => generation,
            Err(error) => return self.reject(&[format!("internal error: {error}")]),
        };
        next.generation = generation;
        self.current = next;
        self.plan = Arc::new(compiled.plan);
        self.parties.apply(&self.plan);
        tracing::info!(
            %generation,
            services = self.current.service_count(),
            revisions = self.current.revision_count(),
            took = ?start.elapsed(),
            "config applied"
        );
        self.say_what_is_fixed();
        ReloadOutcome::Applied(generation)
    }

    fn say_what_is_fixed(&mut self) {
        let next = self.current.settings();
        let fixed = self.parties.fixed_changes(&self.bound, next);
        if fixed != self.not_applied {
            warn_all(&fixed);
            self.not_applied = fixed;
        }
    }

    fn reject<E: fmt::Display>(&self, mistakes: &[E]) -> ReloadOutcome {
        for mistake in mistakes {
            tracing::error!("{mistake}");
        }
        let generation = self.current.generation;
        let count = mistakes.len();
        tracing::error!(%generation, "config rejected ({count} to fix): the last good one goes on");
        ReloadOutcome::Rejected(count)
    }
}

// By hand: loaders are closures, which say nothing of themselves.
impl<S, L> fmt::Debug for Loaded<S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl<S, L, P> fmt::Debug for Reconciler<S, L, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconciler")
            .field("generation", &self.current.generation)
            .finish_non_exhaustive()
    }
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests;
