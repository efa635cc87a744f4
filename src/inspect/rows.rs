//! Tables in plain text.

/// Text of others for a terminal: nothing in it commands it.
pub fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Rows under a head, each column as wide as it needs.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let head: Vec<String> = head.iter().map(|text| (*text).to_owned()).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{:width$}  ", plain(cell)));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_commands_a_terminal_is_not_printed() {
        let rows = vec![vec!["/\u{9b}2J\u{1b}[2J\n".to_owned()]];
        let fallen = "\u{fffd}";
        assert_eq!(super::table(&["X"], &rows), format!("X\n/{fallen}2J{fallen}[2J{fallen}\n"));
    }

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let rows = vec![vec!["a".to_owned(), "long one".to_owned()], vec!["bcd".to_owned(), String::new()]];
        assert_eq!(super::table(&["X", "Y"], &rows), "X    Y\na    long one\nbcd\n");
    }
}
