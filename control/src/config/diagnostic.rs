//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// More than anybody reads; keeps a hostile file from filling memory with complaints.
const MAX_KEPT: usize = 1_000;

/// Whether a diagnostic rejects the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

/// A position in a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file as it was named.
    pub file: PathBuf,
    /// From 1; 0 when the diagnostic is about the file as a whole.
    pub line: u32,
    /// In characters, from 1; 0 when the diagnostic is about the file as a whole.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// Another place that a diagnostic is about: where the other claim was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Related {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What is there.
    pub message: String,
}

/// One mistake, or one thing to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Diagnostic {
    /// Whether it rejects the configuration.
    pub severity: Severity,
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// The same place in terms of the configuration: `services[0].revisions[1].timeoutSeconds`;
    /// empty for the whole file.
    pub path: String,
    /// What is wrong, in one line.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Other places it is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// An error about a file as a whole, such as one that cannot be read.
    pub fn about_file(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            place: Place {
                file: file.into(),
                line: 0,
                column: 0,
            },
            path: String::new(),
            message: message.into(),
            hint: None,
            related: Vec::new(),
        }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another place.
    #[must_use]
    pub fn related(mut self, place: Place, message: impl Into<String>) -> Self {
        self.related.push(Related {
            place,
            message: message.into(),
        });
        self
    }

    /// The same as a mere warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}: {severity}: {}", self.place, self.message)?;
        if !self.path.is_empty() {
            write!(f, "\n  at {}", self.path)?;
        }
        for related in &self.related {
            write!(f, "\n  {}: {}", related.place, related.message)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// All that is wrong, in the order of files and lines. As an error it is the reason why a
/// configuration was rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    items: Vec<Diagnostic>,
    errors: usize,
}

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let error = diagnostic.severity == Severity::Error;
        self.errors += usize::from(error);
        if self.items.len() < MAX_KEPT {
            self.items.push(diagnostic);
        }
    }

    /// Adds all of another.
    pub fn append(&mut self, other: Self) {
        let left_out = other.errors
            - other
                .items
                .iter()
                .filter(|d| d.severity == Severity::Error)
                .count();
        self.errors += left_out;
        for item in other.items {
            self.push(item);
        }
    }

    /// What was kept; there are at most 1,000.
    pub fn items(&self) -> &[Diagnostic] {
        &self.items
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many errors there are, kept or not.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings were kept.
    pub fn warnings(&self) -> usize {
        self.items
            .iter()
            .filter(|d| d.severity == Severity::Warning)
            .count()
    }

    /// Whether nothing more is kept, so that composing a message is not worth it.
    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= MAX_KEPT
    }

    /// What `--format json` prints.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "valid": self.errors == 0,
            "errors": self.errors,
            "warnings": self.warnings(),
            "diagnostics": self.items,
        })
    }

    /// Puts them in the order of files (`rank`), lines and columns. A mistake in an anchored value
    /// is met once for each alias and told once.
    pub(crate) fn settle(&mut self, rank: impl Fn(&std::path::Path) -> usize) {
        let key = |d: &Diagnostic| (rank(&d.place.file), d.place.line, d.place.column);
        self.items.sort_by_key(key);
        let mut seen = std::collections::HashSet::new();
        let mut repeated = 0;
        self.items.retain(|d| {
            let fresh = seen.insert((d.severity, d.place.clone(), d.message.clone()));
            repeated += usize::from(!fresh && d.severity == Severity::Error);
            fresh
        });
        self.errors -= repeated;
    }
}

impl Diagnostics {
    /// Those of each of `count` files, as `place` has them. Errors that were not kept count for the
    /// first one.
    pub(crate) fn by_file(self, count: usize, place: impl Fn(&std::path::Path) -> usize) -> Vec<Self> {
        let mut all: Vec<Self> = std::iter::repeat_with(Self::default).take(count).collect();
        let kept = self.items.len() - self.warnings();
        if let Some(first) = all.first_mut() {
            first.errors += self.errors.saturating_sub(kept);
        }
        for item in self.items {
            if let Some(own) = all.get_mut(place(&item.place.file)) {
                own.push(item);
            }
        }
        all
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{item}")?;
        }
        let kept = self.items.len() - self.warnings();
        if self.errors > kept {
            write!(f, "\nand {} errors more", self.errors - kept)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl FromIterator<Diagnostic> for Diagnostics {
    fn from_iter<I: IntoIterator<Item = Diagnostic>>(items: I) -> Self {
        let mut all = Self::default();
        for item in items {
            all.push(item);
        }
        all
    }
}
