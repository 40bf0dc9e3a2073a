//! Diagnostics: errors and warnings with a position, a hint and related positions.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// The bound of kept diagnostics: a hostile file cannot fill memory with them.
const MAX_KEPT: usize = 1_000;

/// Whether a diagnostic rejects the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is rejected.
    Error,
    /// The configuration is accepted.
    Warning,
}

/// A position in a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// The file, under the path that the caller gave.
    pub file: PathBuf,
    /// From 1; 0 when the diagnostic is about the file as a whole.
    pub line: u32,
    /// In characters, from 1; 0 when the diagnostic is about the file as a whole.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// A second position of a diagnostic: that of the other of two values in conflict.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Related {
    /// The position.
    #[serde(flatten)]
    pub location: Location,
    /// The role of the value at this position.
    pub message: String,
}

/// One error or warning.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The position.
    #[serde(flatten)]
    pub location: Location,
    /// The path of keys and indices, such as `services[0].name`; empty for the whole file.
    pub path: String,
    /// The message, one line.
    pub message: String,
    /// The correction, one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Positions of other values in conflict.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// An error about a file as a whole, such as one that cannot be read.
    pub fn about_file(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            location: Location {
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

    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a related position.
    #[must_use]
    pub fn related(mut self, location: Location, message: impl Into<String>) -> Self {
        self.related.push(Related {
            location,
            message: message.into(),
        });
        self
    }

    /// Lowers the severity to a warning.
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
        write!(f, "{}: {severity}: {}", self.location, self.message)?;
        if !self.path.is_empty() {
            write!(f, "\n  at {}", self.path)?;
        }
        for related in &self.related {
            write!(f, "\n  {}: {}", related.location, related.message)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// A bounded list of diagnostics: at most 1,000 are kept, all errors are counted. As an error type it is the reason why a
/// configuration was rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    items: Vec<Diagnostic>,
    errors: usize,
}

impl Diagnostics {
    /// Adds a diagnostic; beyond the bound only counts it.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let error = diagnostic.severity == Severity::Error;
        self.errors += usize::from(error);
        if self.items.len() < MAX_KEPT {
            self.items.push(diagnostic);
        }
    }

    /// Adds all diagnostics of another list.
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

    /// The kept diagnostics, at most 1,000.
    pub fn items(&self) -> &[Diagnostic] {
        &self.items
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The number of errors, kept or not.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// The number of kept warnings.
    pub fn warnings(&self) -> usize {
        self.items
            .iter()
            .filter(|d| d.severity == Severity::Warning)
            .count()
    }

    /// Whether the bound is reached, so that composing another message is not worth it.
    pub(crate) fn is_full(&self) -> bool {
        self.items.len() >= MAX_KEPT
    }

    /// The list as JSON: `valid`, `errors`, `warnings`, `diagnostics`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "valid": self.errors == 0,
            "errors": self.errors,
            "warnings": self.warnings(),
            "diagnostics": self.items,
        })
    }

    /// Sorts by file (`rank`), line and column, and removes repetitions: a mistake in an anchored value was found once for
    /// each alias.
    pub fn sort_and_dedup(&mut self, rank: impl Fn(&std::path::Path) -> usize) {
        let key = |d: &Diagnostic| (rank(&d.location.file), d.location.line, d.location.column);
        self.items.sort_by_key(key);
        let mut seen = std::collections::HashSet::new();
        let mut repeated = 0;
        self.items.retain(|d| {
            let fresh = seen.insert((d.severity, d.location.clone(), d.message.clone()));
            repeated += usize::from(!fresh && d.severity == Severity::Error);
            fresh
        });
        self.errors -= repeated;
    }
}

impl Diagnostics {
    /// Splits the list by file: `index` gives the index of a file among `count`. Errors that were not kept are counted for
    /// the first file.
    pub fn by_file(self, count: usize, index: impl Fn(&std::path::Path) -> usize) -> Vec<Self> {
        let mut all: Vec<Self> = std::iter::repeat_with(Self::default).take(count).collect();
        let kept = self.items.len() - self.warnings();
        if let Some(first) = all.first_mut() {
            first.errors += self.errors.saturating_sub(kept);
        }
        for item in self.items {
            if let Some(own) = all.get_mut(index(&item.location.file)) {
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
