//! FEATURES.md is a table of what works and of the tests that prove it. Here the table itself is
//! tested: every file that it names must exist, and every test must be a function that runs.
//!
//! A row is `| Feature | RFC | Code | Test |`. References stand in backticks:
//!
//! * code: a file or folder by its path from the root, several by `{a,b}`;
//! * tests: `file.rs::function`, where `file.rs` is the end of a path (`lifecycle.rs` or
//!   `stack/tcp/tests/lifecycle.rs`), `module::function`, where the module is the end of one
//!   without `.rs`, or a path that exists, for a whole file or folder of tests;
//! * RFC: each RFC by its number, with sections where there are some; `-` if there is none.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use millstream_tests::project_file;

const COLUMNS: [&str; 4] = ["Feature", "RFC", "Code", "Test"];

/// Folders that hold nothing of the project's.
const SKIPPED: [&str; 3] = ["target", ".git", "corpus"];

/// The Rust files of the tree, each with the tests in it.
struct Tree {
    root: PathBuf,
    tests: BTreeMap<String, BTreeSet<String>>,
}

impl Tree {
    fn read(root: &Path) -> Self {
        let mut tree = Self { root: root.to_path_buf(), tests: BTreeMap::new() };
        tree.read_folder(root);
        tree
    }

    fn read_folder(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).expect("a folder of the tree") {
            let entry = entry.expect("an entry of it");
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !SKIPPED.iter().any(|skipped| name == *skipped) {
                    self.read_folder(&path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("Rust is UTF-8");
                let from_root = path.strip_prefix(&self.root).expect("it lies below the root");
                self.tests.insert(from_root.display().to_string(), tests_in(&text));
            }
        }
    }

    /// The files whose paths end in `end`, at a whole name.
    fn files(&self, end: &str) -> impl Iterator<Item = (&String, &BTreeSet<String>)> {
        self.tests.iter().filter(move |(path, _)| {
            path.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        })
    }

    /// What is wrong with a reference to code.
    fn code_fault(&self, reference: &str) -> Option<String> {
        alternatives(reference)
            .iter()
            .find(|path| !self.root.join(path).exists())
            .map(|path| format!("there is no `{path}`"))
    }

    /// What is wrong with a reference to a test.
    fn test_fault(&self, reference: &str) -> Option<String> {
        let Some((place, function)) = reference.rsplit_once("::") else {
            let here = self.root.join(reference);
            let tests: usize = self.files(reference).map(|(_, tests)| tests.len()).sum();
            return if here.is_dir() || tests > 0 || (here.exists() && !reference.ends_with(".rs")) {
                None
            } else {
                Some(format!("`{reference}` is no file or folder with tests"))
            };
        };
        let ends = match place.strip_suffix(".rs") {
            Some(_) => vec![place.to_string()],
            None => {
                let module = place.replace("::", "/");
                vec![
                    format!("{module}.rs"),
                    format!("{module}/mod.rs"),
                    format!("{module}/tests.rs"),
                ]
            }
        };
        let mut files = ends.iter().flat_map(|end| self.files(end)).peekable();
        if files.peek().is_none() {
            return Some(format!("`{reference}`: no file's path ends in {}", ends.join(" or ")));
        }
        if files.any(|(_, tests)| tests.contains(function)) {
            return None;
        }
        Some(format!("`{reference}`: there is no such test in that file"))
    }
}

/// Names of the functions that are marked as tests and not ignored.
fn tests_in(text: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let (mut is_test, mut is_ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            (is_test, is_ignored) = (true, false);
        } else if line.starts_with("#[ignore") {
            is_ignored = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            if is_test && !is_ignored {
                tests.insert(rest[..end].to_string());
            }
            (is_test, is_ignored) = (false, false);
        }
    }
    tests
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn alternatives(reference: &str) -> Vec<String> {
    let parts = reference.split_once('{').and_then(|(before, rest)| {
        let (inner, after) = rest.split_once('}')?;
        Some((before, inner, after))
    });
    match parts {
        Some((before, inner, after)) => {
            inner.split(',').map(|one| format!("{before}{}{after}", one.trim())).collect()
        }
        None => vec![reference.to_string()],
    }
}

/// What stands in backticks.
fn references(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// What is wrong with the RFC column: each source is `RFC NUMBER`, then sections, or `-`.
fn source_fault(cell: &str) -> Option<String> {
    if cell == "-" {
        return None;
    }
    for word in cell.split("RFC").skip(1) {
        let number: String = word.trim_start().chars().take_while(char::is_ascii_digit).collect();
        if number.is_empty() || number.len() > 4 {
            return Some(format!("`RFC{word}` names no RFC"));
        }
    }
    cell.is_empty().then(|| "no source: write `-`".to_string())
}

/// All that is wrong with the text of FEATURES.md, and how many rows it has.
fn check(text: &str, tree: &Tree) -> (Vec<String>, usize) {
    let (mut faults, mut rows, mut in_table) = (Vec::new(), 0, false);
    for (number, line) in text.lines().enumerate() {
        let mut fault = |what: String| faults.push(format!("line {}: {what}", number + 1));
        let Some(inner) = line.strip_prefix('|').and_then(|rest| rest.strip_suffix('|')) else {
            if line.starts_with('|') {
                fault("a row without its last `|`".into());
            }
            in_table = false;
            continue;
        };
        let cells: Vec<&str> = inner.split('|').map(str::trim).collect();
        if !in_table {
            in_table = true;
            if cells != COLUMNS {
                fault(format!("the columns of a table are {}", COLUMNS.join(", ")));
            }
            continue;
        }
        if inner.chars().all(|c| matches!(c, '-' | '|' | ' ')) {
            continue;
        }
        let &[feature, source, code, test] = cells.as_slice() else {
            fault(format!("a row has {} cells instead of 4", cells.len()));
            continue;
        };
        rows += 1;
        if feature.is_empty() {
            fault("a feature without a name".into());
        }
        source_fault(source).into_iter().for_each(&mut fault);
        for (what, cell) in [("code", code), ("test", test)] {
            if cell.matches('`').count() % 2 != 0 || references(cell).is_empty() {
                fault(format!("{feature}: no {what} in backticks"));
            }
        }
        references(code).iter().filter_map(|it| tree.code_fault(it)).for_each(&mut fault);
        references(test).iter().filter_map(|it| tree.test_fault(it)).for_each(&mut fault);
    }
    (faults, rows)
}

fn root() -> PathBuf {
    project_file("")
}

#[test]
fn every_row_names_code_and_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("FEATURES.md")).expect("FEATURES.md");
    let (faults, rows) = check(&text, &Tree::read(&root()));
    assert!(faults.is_empty(), "FEATURES.md:\n{}", faults.join("\n"));
    assert!(rows > 30, "only {rows} rows were found");
}

fn faults_of(row: &str) -> Vec<String> {
    let text = format!("| Feature | RFC | Code | Test |\n|---|---|---|---|\n{row}\n");
    let (faults, rows) = check(&text, &Tree::read(&root()));
    assert!(rows <= 1);
    faults
}

#[test]
fn good_rows_have_no_faults() {
    for row in [
        "| a | RFC 9293 3.10 | `stack/tcp/src/{input,close}.rs` | `lifecycle.rs::all_orders_of_closing` |",
        "| a | - | `stack/tcp` | `stack/tcp/tests/lifecycle.rs` and `features::good_rows_have_no_faults` |",
        "| a | RFC 2018, RFC 2883 4 | `tests/features.rs` | `stack/tcp/tests` |",
    ] {
        assert_eq!(faults_of(row), Vec::<String>::new(), "{row}");
    }
}

#[test]
fn each_fault_is_found() {
    for (row, fault) in [
        ("| a | - | `stack/tcp/src/nothing.rs` | `tests/features.rs` |", "there is no"),
        ("| a | - | `stack/{tcp,nothing}` | `tests/features.rs` |", "there is no `stack/nothing`"),
        ("| a | - | `stack/tcp` | `lifecycle.rs::nothing` |", "no such test"),
        // A function that is no test.
        ("| a | - | `stack/tcp` | `features.rs::alternatives` |", "no such test"),
        ("| a | - | `stack/tcp` | `nothing.rs::nothing` |", "no file's path ends in"),
        ("| a | - | `stack/tcp` | `ecycle.rs::all_orders_of_closing` |", "no file's path"),
        ("| a | - | `stack/tcp` | `tests/nothing.pkt` |", "no file or folder with tests"),
        ("| a | - | `stack/tcp` | `stack/tcp/src/lib.rs` |", "no file or folder with tests"),
        ("| a | - | `stack/tcp` | somewhere |", "no test in backticks"),
        ("| a | - | everywhere | `tests/features.rs` |", "no code in backticks"),
        ("| a | RFC many | `stack/tcp` | `tests/features.rs` |", "names no RFC"),
        ("| a |  | `stack/tcp` | `tests/features.rs` |", "no source"),
        ("| a | `stack/tcp` | `tests/features.rs` |", "3 cells instead of 4"),
        ("| a | - | `stack/tcp` | `tests/features.rs`", "without its last"),
    ] {
        let faults = faults_of(row);
        assert!(faults.iter().any(|it| it.contains(fault)), "{row}: {faults:?}");
    }
    let (faults, _) = check("| What | Test |\n|---|---|\n", &Tree::read(&root()));
    assert!(faults[0].contains("the columns of a table"));
}

#[test]
fn ignored_tests_prove_nothing() {
    let marked = ["#[test]", "#[ignore = \"slow\"]", "fn a() {}", "fn b() {}"];
    let text = [&marked[..], &["    #[test]", "    /// Docs.", "    fn c(x in 0..3) {}"]].concat();
    assert_eq!(tests_in(&text.join("\n")), BTreeSet::from(["c".to_string()]));
}
