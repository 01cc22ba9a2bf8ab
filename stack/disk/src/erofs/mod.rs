//! Images in the format EROFS, as the Linux kernel mounts it: read-only trees of files, each of
//! which lies in one piece.
//!
//! [`Image`] reads one. All names and places are read once, when it is opened; after that a file is
//! a range of the image ([`File::window`](crate::File::window)), and finding it touches no disk.
//! [`Plan`] makes one of a directory, without compression and without bytes of files between the
//! records of the file system, so that every file begins at a block.
//!
//! The format is that of the kernel's documentation and its `erofs_fs.h`. Nothing in an image is
//! trusted: every place is checked against the image's length, what refers to itself is found, and
//! what is read at start is bounded by the image's length.

mod format;
mod image;
mod index;
mod pack;
mod tree;

pub use format::FormatError;
pub use image::{Blocks, Image, ImageError};
pub use pack::{PackError, Packed, Plan};
