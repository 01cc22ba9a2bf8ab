//! Where the files of a server are.

use crate::erofs::Image;
use crate::file::{File, FileStat, OpenError};
use crate::root::Root;

/// A tree of files that paths from strangers are looked up in. Cloning gives another handle.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of this machine.
    Dir(Root),
    /// An image, which never changes.
    Image(Image),
}

impl From<Root> for Source {
    fn from(root: Root) -> Self {
        Self::Dir(root)
    }
}

impl From<Image> for Source {
    fn from(image: Image) -> Self {
        Self::Image(image)
    }
}

impl Source {
    /// Opens the regular file at `relative` (bytes of a path, without a leading slash).
    ///
    /// # Errors
    /// As [`Root::open_file`].
    pub fn open_file(&self, relative: &[u8]) -> Result<File, OpenError> {
        match self {
            Self::Dir(root) => root.open_file(relative),
            Self::Image(image) => image.open_file(relative),
        }
    }

    /// As [`Self::open_file`], if that waits for no disk.
    ///
    /// # Errors
    /// As [`Root::open_file_at_hand`].
    pub fn open_file_at_hand(&self, relative: &[u8]) -> Result<File, OpenError> {
        match self {
            Self::Dir(root) => root.open_file_at_hand(relative),
            Self::Image(image) => image.open_file(relative),
        }
    }

    /// As [`Self::stat`], if that waits for no disk.
    ///
    /// # Errors
    /// As [`Root::stat_at_hand`].
    pub fn stat_at_hand(&self, relative: &[u8]) -> Result<FileStat, OpenError> {
        match self {
            Self::Dir(root) => root.stat_at_hand(relative),
            Self::Image(image) => image.stat(relative),
        }
    }

    /// What is at `relative`. The empty path is the root itself.
    ///
    /// # Errors
    /// As [`Root::stat`].
    pub fn stat(&self, relative: &[u8]) -> Result<FileStat, OpenError> {
        match self {
            Self::Dir(root) => root.stat(relative),
            Self::Image(image) => image.stat(relative),
        }
    }
}
