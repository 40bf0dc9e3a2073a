//! The reconciler: publishes changes of the source, or rejects them.
//!
//! refresh → index → propose; no change? stop → prepare → publish → scale → commit. A failure before publish leaves the last
//! good state serving, and all mistakes are logged at once. Files and the cluster are two sets of objects, each with its
//! own policy: neither can freeze or break the other.

mod fixed;

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;

use sluice_model::{Delta, Generation, ServiceId, Settings};
use tokio::time::Instant;

use crate::compile::{FileReference, ListenerReference};
use crate::config::{Defaults, Diagnostic, Diagnostics};
use crate::index::{SetId, Sets, Step};
use crate::plan::PlanDelta;
use crate::release::{Edit, EditError, Histories, HistoryEdit, Recorder, Request};
use crate::source::{Change, Event, NoSource, Source, SourceError, SourceFile};
use crate::state::StateError;

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

    /// Checks files that changed services name and that publishing reads, such as waiting pages. `files` has the positions
    /// of all names. Returns the mistakes, each in one line; nothing is published if there is one.
    fn check_files(&mut self, _delta: &Delta, _files: &dyn Fn() -> Vec<FileReference>) -> Vec<String> {
        Vec::new()
    }

    /// Publishes a change of the routing table, atomically for requests. Returns the new Generation.
    ///
    /// # Errors
    /// The change contradicts the table, which stays as it is.
    fn publish(&mut self, delta: &Delta) -> Result<Generation, String>;

    /// Applies a change of the scaling plan; called after the publication that it belongs to.
    fn scale(&mut self, plan: &PlanDelta);

    /// Reads named files (certificates, waiting pages) again: an operator asked for a reload.
    fn reread(&mut self) {}

    /// Reports an event of a file that objects name.
    fn touched(&mut self) {}

    /// Reports that the objects of the cluster were listed and published: the gateway knows what to serve.
    fn synced(&mut self) {}

    /// Reports the outcome of a reload, for metrics, and what is wrong with the configuration: the errors of one that was
    /// rejected, else the warnings. `Unchanged` may have found nothing new: `found` repeats what is known then.
    fn outcome(&mut self, _outcome: ReloadOutcome, _found: &[Diagnostic]) {}
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
    /// The histories of services cannot be read.
    Histories(StateError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(errors) => f.write_str(&lines(errors)),
            Self::Mistakes(mistakes) => write!(f, "{mistakes}"),
            Self::Histories(error) => write!(f, "state.directory: {error}"),
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
    sets: Sets,
    env: Environment,
    first: Step,
}

impl<S: Source> Loaded<S> {
    /// Reads and compiles for the first time, with these defaults of the settings. Blocks; for the start, before anything serves. `progress` is called now and then
    /// with the number of compiled objects and of all objects, `histories` once with the settings: it returns the histories
    /// of services, which say what traffic of manifests may name.
    ///
    /// # Errors
    /// [`LoadError`]: an object cannot be read, or has mistakes.
    pub fn first(
        mut source: S,
        env: Environment,
        defaults: Defaults,
        mut progress: impl FnMut(usize, usize),
        histories: impl FnOnce(&Settings) -> Result<Histories, StateError>,
    ) -> Result<Self, LoadError> {
        let events = source.refresh().map_err(LoadError::Source)?;
        let mut sets = Sets::new(defaults);
        sets.apply_first(events, &*env, &mut progress);
        let histories = histories(sets.settings()).map_err(LoadError::Histories)?;
        if !histories.is_empty() {
            sets.set_histories(histories, &*env);
        }
        let found = sets.diagnostics(SetId::Files);
        let first = sets.propose(SetId::Files);
        let Some(first) = first.filter(|_| found.errors() == 0) else {
            return Err(LoadError::Mistakes(found));
        };
        warn_all(found.items());
        Ok(Self {
            source,
            sets,
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
        self.sets.files()
    }

    /// Makes the reconciler, after the loaded services were published as this Generation.
    pub fn attach<P: ChangeSink>(
        self,
        applier: P,
        published: Generation,
        recorder: Recorder,
    ) -> Reconciler<S, P> {
        self.attach_with(applier, published, recorder, NoSource)
    }

    /// Makes the reconciler of files and of a cluster, as [`attach`](Self::attach) does.
    pub fn attach_with<C: Source, P: ChangeSink>(
        mut self,
        mut applier: P,
        published: Generation,
        recorder: Recorder,
        cluster: C,
    ) -> Reconciler<S, P, C> {
        applier.scale(&self.first.plan);
        let found = self
            .sets
            .diagnostics(SetId::Files)
            .into_iter()
            .collect::<Vec<_>>();
        applier.outcome(ReloadOutcome::Applied(published), &found);
        let settings = Arc::clone(&self.first.delta.settings);
        let changes = self
            .sets
            .commit(SetId::Files, self.first, recorder.now(), &*self.env);
        recorder.record(changes);
        self.source.also_watch(&named(&self.sets));
        Reconciler {
            source: self.source,
            cluster,
            sets: self.sets,
            env: self.env,
            applier,
            recorder,
            half: false,
            generation: published,
            bound: Arc::clone(&settings),
            settings,
            unreadable: None,
            not_applied: Vec::new(),
            found,
        }
    }
}

/// Keeps the published state equal to the objects of the sources.
pub struct Reconciler<S, P, C = NoSource> {
    source: S,
    cluster: C,
    sets: Sets,
    env: Environment,
    applier: P,
    recorder: Recorder,
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
    /// What is wrong with the configuration, as reported last.
    found: Vec<Diagnostic>,
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

/// Why the reconciler wakes up.
enum Wake {
    Files(Change),
    Cluster,
    Histories(Request),
}

impl<S: Source, P: ChangeSink, C: Source> Reconciler<S, P, C> {
    /// Follows the sources until the future is dropped. Reading, compiling and publishing run on a blocking thread, never on a
    /// worker that serves requests. A reload under way completes even when the future is dropped.
    pub async fn run(mut self) {
        let mut outcome = LookOutcome::Nothing;
        loop {
            let is_half = outcome == LookOutcome::Half;
            let files = async {
                match is_half {
                    true => self.source.settled().await,
                    false => self.source.changed().await,
                }
            };
            let wake = tokio::select! {
                change = files => Wake::Files(change),
                _ = self.cluster.changed() => Wake::Cluster,
                request = self.recorder.request() => Wake::Histories(request),
            };
            let step = tokio::task::spawn_blocking(move || {
                // The second half of a change of files is awaited as before.
                let mut outcome = if is_half {
                    LookOutcome::Half
                } else {
                    LookOutcome::Nothing
                };
                match wake {
                    Wake::Files(change) => outcome = self.step(change),
                    Wake::Cluster => self.cluster_step(),
                    Wake::Histories(request) => self.history_step(request),
                }
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
                    self.found = self.sets.diagnostics(SetId::Files).into_iter().collect();
                }
                let touched = events.contains(&Event::Touched);
                if touched {
                    self.applier.touched();
                }
                let is_news = !touched || events.len() > 1;
                let differs =
                    self.sets.apply(SetId::Files, events, &*self.env) || std::mem::take(&mut self.half);
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
        self.applier.outcome(outcome, &self.found);
        LookOutcome::Done(outcome)
    }

    fn cannot_read(&mut self, errors: &[SourceError], change: Change) -> Option<ReloadOutcome> {
        let text = lines(errors);
        let known = self.unreadable.as_ref() == Some(&text);
        if known && change == Change::Poll {
            return None;
        }
        if !known || change == Change::Reload {
            let unreadable = |error: &SourceError| Diagnostic::about_file(error.path(), error.to_string());
            self.found = errors.iter().map(unreadable).collect();
            self.reject(errors);
        }
        self.unreadable = Some(text);
        Some(ReloadOutcome::Rejected(errors.len()))
    }

    /// Publishes or rejects the pending change. `None`: the change came without the usual quiet time, and removes something
    /// or has a mistake, so it may be half of one.
    fn reload(&mut self, change: Change, start: Instant) -> Option<ReloadOutcome> {
        let found = self.sets.diagnostics(SetId::Files);
        let step = self.sets.propose(SetId::Files);
        let takes_away = step.as_ref().is_none_or(|step| step.takes_away);
        if change == Change::Complete && takes_away {
            self.half = true;
            return None;
        }
        self.found = found.items().to_vec();
        let Some(step) = step else {
            return Some(self.reject(found.items()));
        };
        warn_all(found.items());
        if step.is_empty {
            self.commit(SetId::Files, step);
            if change == Change::Reload {
                self.applier.reread();
            }
            tracing::info!(generation = %self.generation, "config unchanged");
            return Some(ReloadOutcome::Unchanged);
        }
        let wrong = self.applier.check_files(&step.delta, &|| self.sets.files());
        if !wrong.is_empty() {
            return Some(self.reject(&wrong));
        }
        let settings = Arc::clone(&step.delta.settings);
        let other_settings = !Arc::ptr_eq(&settings, &self.settings);
        if other_settings && let Err(refused) = self.applier.prepare(&settings, &self.sets.listeners()) {
            self.found = without_place(&refused);
            return Some(self.reject(&refused));
        }
        self.generation = match self.applier.publish(&step.delta) {
            Ok(generation) => generation,
            Err(error) => {
                let error = [format!("internal error: {error}")];
                self.found = without_place(&error);
                return Some(self.reject(&error));
            }
        };
        if change == Change::Reload {
            self.applier.reread();
        }
        self.applier.scale(&step.plan);
        let (changed, removed) = (step.delta.services.len(), step.delta.removed.len());
        self.commit(SetId::Files, step);
        if other_settings {
            self.settings = Arc::clone(&settings);
            self.source.also_watch(&named(&self.sets));
            self.log_restart_only(&settings);
        }
        tracing::info!(
            generation = %self.generation,
            services = self.sets.services(),
            revisions = self.sets.revisions(),
            changed,
            removed,
            took = ?start.elapsed(),
            "config applied"
        );
        if !self.sets.is_empty(SetId::Cluster) {
            // What files claim now or do not claim any more, and settings that services are compiled by.
            self.publish_cluster(start);
        }
        Some(ReloadOutcome::Applied(self.generation))
    }

    /// Records a step as published, and what it says about histories.
    fn commit(&mut self, set: SetId, step: Step) {
        let changes = self.sets.commit(set, step, self.recorder.now(), &*self.env);
        self.recorder.record(changes);
    }

    /// Takes over the histories of an older process, and publishes what they change. Blocks; before anything is served.
    pub fn inherit(&mut self, histories: Histories) {
        if !self.sets.set_histories(histories, &*self.env) {
            return;
        }
        if let Some(outcome) = self.reload(Change::Event, Instant::now()) {
            self.applier.outcome(outcome, &self.found);
        }
    }

    /// Publishes a change of a history, or tells the histories to whoever takes over.
    fn history_step(&mut self, request: Request) {
        match request {
            Request::Edit(Edit {
                service,
                change,
                done,
            }) => {
                // Nobody may wait for the outcome any more.
                let _ = done.send(self.edit(&service, change));
            }
            Request::Freeze(to) => self.recorder.freeze(self.sets.histories(), to),
        }
    }

    fn edit(&mut self, service: &ServiceId, change: HistoryEdit) -> Result<(), EditError> {
        let Some(release) = self.sets.release(service) else {
            return Err(EditError(format!("no service '{service}' is served from files")));
        };
        let history = change(&release)?;
        if history == *release.history {
            return Ok(());
        }
        let is_shorter = history.revisions.len() < release.history.revisions.len();
        let Some(step) = self.sets.edit(service, history) else {
            return Err(EditError(format!("'{service}' cannot be published that way")));
        };
        if !step.is_empty {
            let published = self.applier.publish(&step.delta);
            self.generation = published.map_err(|error| {
                tracing::error!(%service, "internal error: {error}");
                EditError(format!("internal error: {error}"))
            })?;
            self.applier.scale(&step.plan);
        }
        self.commit(SetId::Files, step);
        if is_shorter {
            self.collected(service);
        }
        Ok(())
    }

    /// Publishes a service without revisions that its history has no longer; with a mistake in some file when that is
    /// corrected.
    fn collected(&mut self, service: &ServiceId) {
        self.sets.read_again(service, &*self.env);
        if !self.half
            && self.sets.diagnostics(SetId::Files).errors() == 0
            && let Some(outcome) = self.reload(Change::Event, Instant::now())
        {
            self.applier.outcome(outcome, &self.found);
        }
    }

    /// One look at the cluster.
    fn cluster_step(&mut self) {
        let start = Instant::now();
        // A cluster's source has no errors: what it cannot read it has not listed.
        let mut events = self.cluster.refresh().unwrap_or_default();
        // Before the objects, so that these are never served by other settings.
        for settings in events
            .extract_if(.., |event| matches!(event, Event::Settings(_)))
            .collect::<Vec<_>>()
        {
            if let Event::Settings(text) = settings {
                self.take_shared(text.as_ref(), start);
            }
        }
        let is_list = events.contains(&Event::InitDone);
        let differs = self.sets.apply(SetId::Cluster, events, &*self.env);
        if differs {
            self.publish_cluster(start);
        }
        if is_list {
            tracing::info!(
                services = self.sets.services(),
                took = ?start.elapsed(),
                "the cluster's objects are listed and served"
            );
            self.applier.synced();
        }
    }

    /// Takes the settings that the cluster gives all gateways, and publishes them where no file has the same keys.
    fn take_shared(&mut self, text: Option<&SourceFile>, start: Instant) {
        match self.sets.set_shared(text, &*self.env) {
            // Half a change of files is pending: these settings are published with it.
            Ok(true) if self.half => {}
            Ok(true) => {
                if let Some(outcome) = self.reload(Change::Event, start) {
                    self.applier.outcome(outcome, &self.found);
                }
            }
            // Nothing else, but perhaps mistakes less.
            Ok(false) => {
                let found: Vec<Diagnostic> = self.sets.diagnostics(SetId::Files).into_iter().collect();
                if found != self.found {
                    self.found = found;
                    self.applier.outcome(ReloadOutcome::Unchanged, &self.found);
                }
            }
            Err(mistakes) => {
                let outcome = self.reject(mistakes.items());
                self.found = self.sets.diagnostics(SetId::Files).into_iter().collect();
                self.applier.outcome(outcome, &self.found);
            }
        }
    }

    /// Publishes the pending changes of the cluster, and reports what became of them.
    fn publish_cluster(&mut self, start: Instant) {
        let Some(step) = self.sets.propose(SetId::Cluster) else {
            return;
        };
        let outcomes = self.sets.outcomes(&step);
        if !step.is_empty {
            self.generation = match self.applier.publish(&step.delta) {
                Ok(generation) => generation,
                Err(error) => {
                    tracing::error!("internal error: the cluster's change contradicts the table: {error}");
                    return;
                }
            };
            self.applier.scale(&step.plan);
        }
        for outcome in &outcomes {
            if let Some(problem) = &outcome.problem {
                let object = &outcome.object;
                tracing::warn!(
                    ingress = %object.name,
                    reason = problem.kind.reason(),
                    "{problem}"
                );
            }
        }
        let (changed, removed) = (step.delta.services.len(), step.delta.removed.len());
        self.commit(SetId::Cluster, step);
        self.cluster.published(outcomes);
        tracing::debug!(
            generation = %self.generation,
            changed,
            removed,
            took = ?start.elapsed(),
            "the cluster's change is served"
        );
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
fn named(sets: &Sets) -> Vec<std::path::PathBuf> {
    sets.settings_files().into_iter().map(|file| file.file).collect()
}

// By hand: the environment, a closure, has no text.
impl<S> fmt::Debug for Loaded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl<S, P, C> fmt::Debug for Reconciler<S, P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconciler")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Mistakes that are text already.
fn without_place(mistakes: &[String]) -> Vec<Diagnostic> {
    mistakes
        .iter()
        .map(|mistake| Diagnostic::about_file("", mistake))
        .collect()
}

fn warn_all<W: fmt::Display>(warnings: &[W]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests;
