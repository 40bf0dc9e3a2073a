//! Text tables for terminals.

use std::fmt::Write;

/// The alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Renders rows under headings. Columns are as wide as their widest cell; lines have no trailing spaces.
pub(super) fn render(headings: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let clean: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let width = |column: usize| {
        let cells = clean.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).max(headings[column].0.len())
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, (_, align)), width) in cells.zip(headings).zip(&widths) {
            // A String takes everything.
            let _ = match align {
                Align::Left => write!(text, "{cell:<width$}  "),
                Align::Right => write!(text, "{cell:>width$}  "),
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut headings.iter().map(|(heading, _)| *heading));
    for row in &clean {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// Escapes control characters, so that a cell, which may quote the stderr of any process, does not drive the
/// terminal.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let headings = [("NAME", Align::Left), ("N", Align::Right), ("WHY", Align::Left)];
        let rows = [
            vec!["a".to_owned(), "7".to_owned(), "1 → 2".to_owned()],
            vec!["longer-é".to_owned(), "1234".to_owned(), String::new()],
        ];
        assert_eq!(
            render(&headings, &rows),
            "NAME         N  WHY\na            7  1 → 2\nlonger-é  1234\n"
        );
    }

    #[test]
    fn cells_do_not_drive_the_terminal() {
        let rows = [vec!["\x1b[2J\nnext".to_owned()]];
        let text = render(&[("A", Align::Left)], &rows);
        assert_eq!(text, "A\n\\u{1b}[2J\\nnext\n");
    }
}
