//! Files to serve.

use std::path::{Path, PathBuf};

use crate::lab::Lab;

/// `len` bytes that look random and are the same each time for the same `seed` (xorshift64*).
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A folder with files of known content.
#[derive(Debug)]
pub struct Site {
    root: PathBuf,
}

impl Site {
    /// An empty folder in the lab's.
    pub fn new(lab: &Lab) -> Self {
        let root = lab.folder().join("site");
        std::fs::create_dir_all(&root).expect("a folder");
        Self { root }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file, with folders above it if need be.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.root.join(name);
        std::fs::create_dir_all(path.parent().expect("it is below the root")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }

    /// Writes a file of `len` bytes and returns them.
    pub fn fill(&self, name: &str, len: usize) -> Vec<u8> {
        let bytes = content(len as u64 + 1, len);
        self.put(name, &bytes);
        bytes
    }
}
