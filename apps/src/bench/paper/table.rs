//! A table with what it takes to show it.

use std::fmt;

use serde::Serialize;

use super::chart::Chart;
use crate::bench::report::grouped;

/// A value of a column.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Words.
    Text(String),
    /// A count.
    Count(u64),
    /// A measurement, shown with so many decimals.
    #[serde(serialize_with = "only_value")]
    Number(f64, usize),
}

fn only_value<S: serde::Serializer>(value: &f64, _: &usize, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(*value)
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.pad(text),
            Self::Count(count) => f.pad(&grouped(*count)),
            Self::Number(value, decimals) => f.pad(&format!("{value:.decimals$}")),
        }
    }
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Column {
    /// Its name, and that of its values for machines.
    pub name: &'static str,
    /// Its unit; empty: none.
    pub unit: &'static str,
}

/// A row, measured here or published.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// It stands in the paper; else it was measured here.
    pub published: bool,
    /// A value for each column.
    pub cells: Vec<Value>,
}

impl Row {
    /// A row that was measured here.
    pub fn ours(cells: Vec<Value>) -> Self {
        Self { published: false, cells }
    }
}

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// How it was made: one line each.
    pub about: Vec<String>,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows; a published one stands below what it is to be compared with.
    pub rows: Vec<Row>,
    /// What the paper says that is no row of it, and what could not be verified.
    pub published: Vec<String>,
    /// The same as a picture.
    #[serde(skip)]
    pub chart: Chart,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for line in &self.about {
            writeln!(f, "  {line}")?;
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(column));
            let head = self.columns.get(column).map_or(0, |c| c.name.len().max(c.unit.len()));
            cells.map(|cell| cell.to_string().len()).max().unwrap_or(0).max(head)
        };
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        let line = |f: &mut fmt::Formatter<'_>, cells: Vec<String>, mark: &str| {
            let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
            writeln!(f, "  {}{mark}", cells.collect::<Vec<_>>().join("  "))
        };
        writeln!(f)?;
        line(f, self.columns.iter().map(|column| column.name.to_owned()).collect(), "")?;
        line(f, self.columns.iter().map(|column| column.unit.to_owned()).collect(), "")?;
        for row in &self.rows {
            let mark = if row.published { "  (published)" } else { "" };
            line(f, row.cells.iter().map(Value::to_string).collect(), mark)?;
        }
        writeln!(f)?;
        for (i, line) in self.published.iter().enumerate() {
            let comma = if i + 1 < self.published.len() { "\n" } else { "" };
            write!(f, "  published: {line}{comma}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_values_are_for_machines_too() {
        let columns =
            vec![Column { name: "packets", unit: "" }, Column { name: "time", unit: "ms" }];
        let row = |count, value| Row::ours(vec![Value::Count(count), Value::Number(value, 1)]);
        let mut rows = vec![row(5, 101.04), row(100_000, 24_100.0)];
        rows.push(Row { published: true, cells: vec![Value::Count(7), Value::Number(1.0, 1)] });
        let table = Table {
            title: "a title".into(),
            about: vec!["how".into()],
            columns,
            rows,
            published: vec!["a word".into()],
            chart: Chart::default(),
        };
        let text = table.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[3], "  packets     time");
        assert_eq!(lines[5], "        5    101.0");
        assert_eq!(lines[6], "  100,000  24100.0");
        assert_eq!(lines[7], "        7      1.0  (published)");
        assert_eq!(lines[9], "  published: a word");
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["rows"][0]["cells"][1], 101.04);
        assert_eq!(json["rows"][2]["published"], true);
    }
}
