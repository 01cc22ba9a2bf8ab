//! An image that is read.

use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use siphasher::sip::SipHasher13;

use super::format::{FormatError, SUPER_BYTES, SUPER_OFFSET, Super};
use super::index::{Extent, Index, Node};
use super::tree;
use crate::file::{File, FileKind, FileStat, OpenError, system_time};

/// What the records of an image are read from, once, when it is opened.
pub trait Blocks {
    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// The device's, or `UnexpectedEof` if there are fewer.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

impl Blocks for std::fs::File {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }
}

impl Blocks for [u8] {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let from = from.and_then(|from| from.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no file of that name, or none that can be read.
    #[error("cannot open the image `{}`: {source}", path.display())]
    Open {
        /// What was asked for.
        path: PathBuf,
        /// Why not.
        source: OpenError,
    },
    /// The disk would not have it.
    #[error("cannot read the image ({0}); check the disk")]
    Io(#[from] io::Error),
    /// It is not as it should be.
    #[error("the image cannot be served: {0}")]
    Format(#[from] FormatError),
}

/// A tree of files in an EROFS image. Cloning gives another handle; files that were opened stay
/// readable when the last one is gone.
///
/// All names are in memory: nothing here waits for a disk after [`Self::open`].
#[derive(Clone, Debug)]
pub struct Image(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data: File,
    volume: Super,
    /// A number made of all that the superblock says.
    number: u64,
    index: Index,
}

impl Image {
    /// Opens an image in a file or on a block device, and reads all names in it. That takes some
    /// microseconds a name.
    ///
    /// # Errors
    /// [`ImageError`] says what is wrong and how a good one is made.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let data = File::open_image(path)
            .map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
        // The records come through the page cache, which reads ahead. It is the same file unless
        // somebody renamed another over it just now.
        let records = std::fs::File::open(path)?;
        Self::read(&records, data)
    }

    /// Reads the names of the image in `data` from `records`, which are the same bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(records: &(impl Blocks + ?Sized), data: File) -> Result<Self, ImageError> {
        let mut head = [0; SUPER_BYTES];
        records.read_at(SUPER_OFFSET, &mut head).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::NotErofs.into(),
            _ => ImageError::Io(error),
        })?;
        let volume = Super::parse(&head)?;
        let want = u64::from(volume.blocks) * volume.block_bytes();
        if want > data.len() {
            return Err(FormatError::CutShort { len: data.len(), want }.into());
        }
        if volume.block_bytes() < data.align_bytes() as u64 {
            return Err(FormatError::BlockSize { bits: volume.block_bits }.into());
        }
        let mut checked = vec![0; volume.checked_bytes()];
        records.read_at(SUPER_OFFSET, &mut checked)?;
        if !volume.checksum_is_right(&checked) {
            return Err(FormatError::Checksum.into());
        }
        let index = tree::read(records, &volume)?;
        let mut hasher = SipHasher13::new();
        hasher.write(&head);
        // Zero stands for no image.
        let number = hasher.finish().max(1);
        Ok(Self(Arc::new(Inner { data, volume, number, index })))
    }

    /// Opens the regular file at `relative` (bytes of a path, without a leading slash). Symbolic
    /// links are followed as long as they stay inside.
    ///
    /// # Errors
    /// As [`Root::open_file`](crate::Root::open_file) has them.
    pub fn open_file(&self, relative: &[u8]) -> Result<File, OpenError> {
        let node = self.0.index.find(relative)?;
        match self.0.index.nodes.get(node as usize) {
            Some(Node::File(extent)) => self.file(extent),
            Some(Node::Dir(_)) => Err(OpenError::IsDirectory),
            _ => Err(OpenError::NotRegular),
        }
    }

    /// What is at `relative`. The empty path is the root itself.
    ///
    /// # Errors
    /// As [`Self::open_file`], but any kind of file has an answer.
    pub fn stat(&self, relative: &[u8]) -> Result<FileStat, OpenError> {
        let node = self.0.index.find(relative)?;
        let (kind, len, modified, number) = match self.0.index.nodes.get(node as usize) {
            Some(Node::File(extent)) => return Ok(self.stat_of(extent)),
            Some(Node::Dir(dir)) => (FileKind::Directory, 0, dir.modified, dir.number),
            Some(Node::Other(number)) => (FileKind::Other, 0, self.0.volume.built, *number),
            _ => return Err(OpenError::NotFound),
        };
        Ok(self.made(kind, len, modified, number))
    }

    fn file(&self, extent: &Extent) -> Result<File, OpenError> {
        let file = self.0.data.window(extent.start, self.stat_of(extent));
        // Checked when the names were read; the data's alignment cannot have grown since.
        file.ok_or(OpenError::Io { errno: libc::EIO })
    }

    fn stat_of(&self, extent: &Extent) -> FileStat {
        self.made(FileKind::Regular, extent.len, extent.modified, extent.number)
    }

    fn made(&self, kind: FileKind, len: u64, modified: (i64, u32), number: u64) -> FileStat {
        let volume = self.0.number;
        FileStat {
            kind,
            len,
            modified: system_time(modified.0, modified.1),
            changed: self.built(),
            id: (volume, number),
            volume,
        }
    }

    /// When it was made.
    pub fn built(&self) -> SystemTime {
        let (seconds, nanos) = self.0.volume.built;
        system_time(seconds, nanos)
    }

    /// Its UUID.
    pub fn uuid(&self) -> [u8; 16] {
        self.0.volume.uuid
    }

    /// Bytes of the whole image.
    pub fn image_bytes(&self) -> u64 {
        u64::from(self.0.volume.blocks) * self.0.volume.block_bytes()
    }

    /// Names in it, those of directories and links too.
    pub fn names(&self) -> usize {
        self.0.index.len()
    }

    /// Every regular file with its path; one with two names comes twice.
    pub fn files(&self) -> impl Iterator<Item = (Vec<u8>, File)> {
        self.0.index.files().filter_map(|(path, extent)| Some((path, self.file(&extent).ok()?)))
    }
}
