//! Variants of the project's configurations.

use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::server::project_file;

/// The text of a configuration under change.
#[derive(Clone, Debug)]
pub struct Config {
    text: String,
}

impl Config {
    /// Starts from a file in `config/`.
    pub fn from_profile(name: &str) -> Self {
        let path = project_file("config").join(name);
        let text = std::fs::read_to_string(&path);
        Self { text: text.unwrap_or_else(|error| panic!("{}: {error}", path.display())) }
    }

    /// Gives the key its value, as TOML; the key must be in the profile, set or commented out.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        let mut found = false;
        let lines = self.text.lines().map(|line| {
            let bare = line.trim_start_matches(['#', ' ']);
            let this = bare.split_once('=').is_some_and(|(name, _)| name.trim_end() == key);
            if this && !found {
                found = true;
                return format!("{key} = {value}");
            }
            line.to_string()
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        assert!(found, "the profile has no key `{key}`");
        self.text = text;
        self
    }

    /// Appends lines.
    pub fn with(mut self, lines: &str) -> Self {
        self.text.push('\n');
        self.text.push_str(lines);
        self.text.push('\n');
        self
    }

    /// Writes it into the lab's folder.
    pub fn write(&self, lab: &Lab) -> PathBuf {
        let file = tempfile::Builder::new().suffix(".toml").tempfile_in(lab.folder());
        let (mut file, path) = file.expect("a file").keep().expect("to keep it");
        std::io::Write::write_all(&mut file, self.text.as_bytes()).expect("to write it");
        Path::new(&path).to_path_buf()
    }
}
