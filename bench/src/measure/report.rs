//! The report of a run: a table to read, and every figure in JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{Failure, machine};

/// One table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        Self {
            title: title.into(),
            columns: columns.iter().map(|&c| c.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.columns.len(), "{cells:?}");
        self.rows.push(cells);
    }

    fn text(&self) -> String {
        let mut out = format!("{}\n\n| {} |\n", self.title, self.columns.join(" | "));
        let _ = writeln!(out, "|{}", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let _ = writeln!(out, "| {} |", row.join(" | "));
        }
        out
    }
}

/// The results of one benchmark.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) tables: Vec<Table>,
    /// Notes of one line each: budgets met or not, and facts that are needed to read the tables.
    pub(crate) notes: Vec<String>,
    /// The parameters of the run.
    pub(crate) parameters: Value,
    /// Every measured figure.
    pub(crate) rounds: Value,
}

impl Report {
    /// Adds a note with the verdict on a budget.
    pub(crate) fn budget(&mut self, what: &str, measured: Option<f64>, limit: f64, unit: &str) {
        let verdict = match measured {
            Some(value) if value < limit => "met",
            Some(_) => "NOT MET",
            None => "not measured",
        };
        let measured = super::stats::number(measured, 2);
        self.notes.push(format!(
            "budget: {what} under {limit} {unit}: {measured} {unit}, {verdict}"
        ));
    }

    fn text(&self, name: &str, about: &Value) -> String {
        let machine = &about["machine"];
        let mut out = format!("## {name}\n\n");
        let _ = writeln!(
            out,
            "{}, commit {}{}, {} x {}, {} GiB, Linux {}, profile {}, load average {:.1} before and {:.1} after.",
            about["when"].as_str().unwrap_or("?"),
            about["commit"].as_str().unwrap_or("?"),
            if about["dirty"] == json!(true) {
                " with changes"
            } else {
                ""
            },
            machine["cpus"],
            machine["cpu"].as_str().unwrap_or("?"),
            machine["memory_gib"],
            machine["kernel"].as_str().unwrap_or("?"),
            about["profile"].as_str().unwrap_or("?"),
            about["load_average"][0].as_f64().unwrap_or(f64::NAN),
            about["load_average"][1].as_f64().unwrap_or(f64::NAN),
        );
        let _ = writeln!(
            out,
            "Parameters: `{}`; took {} s.\n",
            self.parameters, about["took_s"]
        );
        for table in &self.tables {
            let _ = writeln!(out, "{}", table.text());
        }
        for note in &self.notes {
            let _ = writeln!(out, "- {note}");
        }
        out
    }

    /// Prints the report, and writes `NAME.md` and `NAME.json` to `folder`.
    pub(crate) fn keep(&self, name: &str, about: &Value, folder: &Path) -> Result<(), Failure> {
        let text = self.text(name, about);
        println!("{text}");
        std::fs::create_dir_all(folder).map_err(|e| Failure::io(&folder.display().to_string(), e))?;
        let json = json!({"name": name, "about": about, "parameters": self.parameters, "notes": self.notes, "rounds": self.rounds});
        for (ending, contents) in [("md", text), ("json", format!("{json}\n"))] {
            let path = folder.join(format!("{name}.{ending}"));
            std::fs::write(&path, contents).map_err(|e| Failure::io(&path.display().to_string(), e))?;
            println!("kept in {}", path.display());
        }
        Ok(())
    }
}

/// Machine, commit, time.
pub(crate) fn about(profile: &str, load_before: f64, took_s: u64) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(root).output();
        let text = output.ok().filter(|o| o.status.success()).map(|o| o.stdout);
        text.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    let commit = said("git", &["rev-parse", "--short", "HEAD"]);
    let dirty = said("git", &["status", "--porcelain", "--untracked-files=no"]);
    json!({
        "when": said("date", &["-u", "+%Y-%m-%dT%H:%MZ"]),
        "commit": commit,
        "dirty": dirty.is_some_and(|changes| !changes.is_empty()),
        "rust": said("rustc", &["--version"]),
        "profile": profile,
        "machine": machine::describe(),
        "load_average": [load_before, machine::load_average()],
        "took_s": took_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_measured_where_and_whether_budgets_are_met() {
        let mut report = Report {
            parameters: json!({"rounds": 2}),
            rounds: json!([1, 2]),
            ..Report::default()
        };
        let mut table = Table::new("Times", &["what", "ms"]);
        table.row(["release".to_owned(), "3.0".to_owned()]);
        report.tables.push(table);
        report.budget("release p99", Some(4.9), 5.0, "ms");
        report.budget("detection p99", Some(10.0), 10.0, "ms");
        report.budget("other", None, 10.0, "ms");
        let folder = tempfile::tempdir().expect("a directory");
        let about = about("ci", 0.5, 12);
        report.keep("hold", &about, folder.path()).expect("written");
        let text = std::fs::read_to_string(folder.path().join("hold.md")).expect("kept");
        for part in [
            "| what | ms |\n|---|---|\n| release | 3.0 |",
            "release p99 under 5 ms: 4.90 ms, met",
            "10.00 ms, NOT MET",
            "not measured",
            r#"{"rounds":2}"#,
            "profile ci",
            "took 12 s",
        ] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
        let json = std::fs::read_to_string(folder.path().join("hold.json")).expect("kept");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["rounds"], json!([1, 2]));
        assert!(json["about"]["machine"]["cpus"].as_u64() >= Some(1));
    }
}
