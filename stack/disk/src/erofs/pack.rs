//! Makes an image of a directory.
//!
//! ```text
//! block 0: superblock, inodes -> directories and links, a block each at least -> files, each from a
//! block's begin on, in the order of the tree
//! ```
//!
//! The same files with the same times make the same image, byte for byte.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use siphasher::sip128::{Hasher128, SipHasher13};

use super::format::{
    DIRENT_BYTES, INODE_BYTES, LINK_BYTES_MAX, NAME_BYTES_MAX, NewInode, SLOT_BYTES, SUPER_BYTES,
    SUPER_OFFSET, Super,
};

/// Bytes of a block of an image that is made.
const BLOCK: u64 = 4096;

/// The inodes begin right behind the superblock.
const INODES_AT: u64 = SUPER_OFFSET + SUPER_BYTES as u64;

/// Bytes that are copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or directory could not be read.
    #[error("cannot read `{}` ({source}); check its permissions", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image could not be written.
    #[error("cannot write the image ({0}); check the space that is left")]
    Write(#[from] io::Error),
    /// What is packed must stand still.
    #[error("`{}` changed while it was packed; pack a copy that nobody writes to", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// A name or the target of a link is too long.
    #[error("`{}`: names of more than {NAME_BYTES_MAX} and links of more than {LINK_BYTES_MAX} bytes cannot be packed; shorten it", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// An image has at most 2^32 blocks.
    #[error("{bytes} bytes are more than an image of 16 TiB holds; divide the directory")]
    TooLarge {
        /// What the image would have.
        bytes: u64,
    },
}

enum Kind {
    /// Its names, each with the item that it stands for; and the directory above.
    Dir {
        names: Vec<(OsString, usize)>,
        parent: usize,
    },
    File,
    Link(Vec<u8>),
}

struct Item {
    /// Where it is; of several names the first.
    path: PathBuf,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, u32),
    /// Bytes in the image.
    len: u64,
    links: u32,
    /// The block with which they begin.
    block: u64,
}

/// What an image will hold: a directory that was looked through, and a place for each thing in it.
pub struct Plan {
    items: Vec<Item>,
    /// Pipes, sockets, devices.
    skipped: usize,
    /// Blocks of inodes, directories and links.
    records: u64,
    blocks: u64,
}

/// An image that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the image.
    pub image_bytes: u64,
    /// A number made of all that it holds.
    pub uuid: [u8; 16],
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> PackError {
    move |source| PackError::Read { path: path.to_owned(), source }
}

impl Plan {
    /// Looks through a directory. Pipes, sockets and devices are left out and counted.
    ///
    /// # Errors
    /// [`PackError`]
    pub fn scan(dir: &Path) -> Result<Self, PackError> {
        let meta = fs::metadata(dir).map_err(io_at(dir))?;
        let mut plan = Self { items: Vec::new(), skipped: 0, records: 0, blocks: 0 };
        plan.items.push(item(dir.to_owned(), Kind::Dir { names: Vec::new(), parent: 0 }, &meta));
        let mut several_names = HashMap::new();
        let mut next = 0;
        while next < plan.items.len() {
            if matches!(plan.items[next].kind, Kind::Dir { .. }) {
                plan.scan_dir(next, &mut several_names)?;
            }
            next += 1;
        }
        plan.place()?;
        Ok(plan)
    }

    fn scan_dir(
        &mut self,
        dir: usize,
        several_names: &mut HashMap<(u64, u64), usize>,
    ) -> Result<(), PackError> {
        let path = self.items[dir].path.clone();
        let entries = fs::read_dir(&path).map_err(io_at(&path))?;
        let mut names: Vec<OsString> = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()
            .map_err(io_at(&path))?;
        names.sort_unstable_by(|left, right| left.as_bytes().cmp(right.as_bytes()));
        let mut known = Vec::with_capacity(names.len());
        for name in names {
            let below = path.join(&name);
            if name.len() > NAME_BYTES_MAX {
                return Err(PackError::TooLong { path: below });
            }
            let meta = fs::symlink_metadata(&below).map_err(io_at(&below))?;
            let kind = meta.file_type();
            let several = meta.is_file() && meta.nlink() > 1;
            if several && let Some(&same) = several_names.get(&(meta.dev(), meta.ino())) {
                self.items[same].links += 1;
                known.push((name, same));
                continue;
            }
            let number = self.items.len();
            if kind.is_dir() {
                self.items[dir].links += 1;
                let kind = Kind::Dir { names: Vec::new(), parent: dir };
                self.items.push(item(below, kind, &meta));
            } else if kind.is_symlink() {
                let target = fs::read_link(&below).map_err(io_at(&below))?;
                let target = target.into_os_string().into_vec();
                if target.len() as u64 > LINK_BYTES_MAX - 1 {
                    return Err(PackError::TooLong { path: below });
                }
                self.items.push(item(below, Kind::Link(target), &meta));
            } else if kind.is_file() {
                if several {
                    several_names.insert((meta.dev(), meta.ino()), number);
                }
                self.items.push(item(below, Kind::File, &meta));
            } else {
                debug_assert!(
                    kind.is_fifo()
                        || kind.is_socket()
                        || kind.is_block_device()
                        || kind.is_char_device()
                );
                self.skipped += 1;
                continue;
            }
            known.push((name, number));
        }
        if let Kind::Dir { names, .. } = &mut self.items[dir].kind {
            *names = known;
        }
        Ok(())
    }

    /// Gives each item its blocks: directories and links first.
    fn place(&mut self) -> Result<(), PackError> {
        let inodes = INODES_AT + (self.items.len() * INODE_BYTES) as u64;
        let mut block = inodes.div_ceil(BLOCK);
        for number in 0..self.items.len() {
            let len = match &self.items[number].kind {
                Kind::Dir { .. } => self.directory(number).1,
                Kind::Link(target) => target.len() as u64,
                Kind::File => continue,
            };
            let item = &mut self.items[number];
            (item.len, item.block) = (len, block);
            block += len.div_ceil(BLOCK);
        }
        self.records = block;
        for item in self.items.iter_mut().filter(|item| matches!(item.kind, Kind::File)) {
            item.block = block;
            block += item.len.div_ceil(BLOCK);
        }
        self.blocks = block;
        // The last number stands for no block.
        if block >= u64::from(u32::MAX) {
            return Err(PackError::TooLarge { bytes: self.image_bytes() });
        }
        Ok(())
    }

    /// Bytes that the image will have.
    pub fn image_bytes(&self) -> u64 {
        self.blocks.saturating_mul(BLOCK)
    }

    /// Regular files in it.
    pub fn files(&self) -> usize {
        self.items.iter().filter(|item| matches!(item.kind, Kind::File)).count()
    }

    /// Pipes, sockets and devices that are left out.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    fn inode_number(item: usize) -> u64 {
        (INODES_AT + (item * INODE_BYTES) as u64) / SLOT_BYTES
    }

    /// A directory's blocks and its length: what is in use of the last one counts.
    fn directory(&self, number: usize) -> (Vec<u8>, u64) {
        let Kind::Dir { names, parent } = &self.items[number].kind else { return (Vec::new(), 0) };
        let mut entries: Vec<(&[u8], usize)> =
            names.iter().map(|(name, item)| (name.as_bytes(), *item)).collect();
        entries.extend([(&b"."[..], number), (b"..", *parent)]);
        entries.sort_unstable();
        let mut out = Vec::new();
        let mut len = 0;
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let mut used = 0;
            let fits = |(name, _): &&(&[u8], usize)| {
                used += DIRENT_BYTES + name.len();
                used <= BLOCK as usize
            };
            let count = rest.iter().take_while(fits).count();
            let (block, others) = rest.split_at(count);
            rest = others;
            len = out.len() as u64;
            let mut name_at = block.len() * DIRENT_BYTES;
            for (name, item) in block {
                out.extend_from_slice(&Self::inode_number(*item).to_le_bytes());
                out.extend_from_slice(&(name_at as u16).to_le_bytes());
                out.extend_from_slice(&[self.items[*item].type_byte(), 0]);
                name_at += name.len();
            }
            block.iter().for_each(|(name, _)| out.extend_from_slice(name));
            len += name_at as u64;
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        }
        (out, len)
    }

    fn inode(&self, number: usize) -> [u8; INODE_BYTES] {
        let item = &self.items[number];
        NewInode {
            number: number as u32 + 1,
            mode: item.mode as u16,
            links: item.links,
            owner: item.owner,
            len: item.len,
            modified: item.modified,
            block: item.block as u32,
        }
        .emit()
    }

    /// Writes the image to the beginning of `out`, a file or a block device, and calls `progress`
    /// with the bytes that are written now and then. Nothing is an image before it has ended: the
    /// superblock comes last.
    ///
    /// # Errors
    /// [`PackError`]; then what was written is no image.
    pub fn write(
        &self,
        out: &fs::File,
        mut progress: impl FnMut(u64),
    ) -> Result<Packed, PackError> {
        let newest = self.items.iter().map(|item| item.modified).max().unwrap_or_default();
        let root = Self::inode_number(0);
        let mut volume = Super::new(root, self.items.len() as u64, newest, self.blocks as u32);
        let mut hasher = SipHasher13::new();
        // Whatever was there before is no image from here on.
        out.write_all_at(&[0; BLOCK as usize], 0)?;
        let records = self.records();
        hasher.write(&records);
        if let Some(behind) = records.get(BLOCK as usize..) {
            out.write_all_at(behind, BLOCK)?;
        }
        progress(records.len() as u64);
        let mut buffer = vec![0; CHUNK_BYTES];
        for item in self.items.iter().filter(|item| matches!(item.kind, Kind::File)) {
            self.copy(item, out, &mut buffer, &mut hasher, &mut progress)?;
        }
        let hash = hasher.finish128();
        volume.uuid = hash.as_bytes();
        let mut first = records.get(..BLOCK as usize).map(<[u8]>::to_vec).unwrap_or_default();
        let head = volume.emit(first.get(INODES_AT as usize..).unwrap_or_default());
        if let Some(place) = first.get_mut(SUPER_OFFSET as usize..INODES_AT as usize) {
            place.copy_from_slice(&head);
        }
        out.sync_data()?;
        out.write_all_at(&first, 0)?;
        out.sync_all()?;
        progress(self.image_bytes());
        Ok(Packed { image_bytes: self.image_bytes(), uuid: volume.uuid })
    }

    /// The blocks of inodes, directories and links, without the superblock.
    fn records(&self) -> Vec<u8> {
        let mut out = vec![0; INODES_AT as usize];
        (0..self.items.len()).for_each(|number| out.extend_from_slice(&self.inode(number)));
        for (number, item) in self.items.iter().enumerate() {
            let bytes = match &item.kind {
                Kind::Dir { .. } => self.directory(number).0,
                Kind::Link(target) => target.clone(),
                Kind::File => continue,
            };
            out.resize((item.block * BLOCK) as usize, 0);
            out.extend_from_slice(&bytes);
        }
        out.resize((self.records * BLOCK) as usize, 0);
        out
    }

    fn copy(
        &self,
        item: &Item,
        out: &fs::File,
        buffer: &mut [u8],
        hasher: &mut SipHasher13,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), PackError> {
        let changed = || PackError::Changed { path: item.path.clone() };
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let mut from = options.open(&item.path).map_err(io_at(&item.path))?;
        let stands = |from: &fs::File| {
            let meta = from.metadata().map_err(io_at(&item.path))?;
            let same = meta.is_file() && meta.len() == item.len && modified(&meta) == item.modified;
            if same { Ok(()) } else { Err(changed()) }
        };
        stands(&from)?;
        let start = item.block * BLOCK;
        let mut done = 0;
        while done < item.len {
            let len = (item.len - done).min(buffer.len() as u64) as usize;
            let chunk = buffer.get_mut(..len).unwrap_or_default();
            from.read_exact(chunk).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => changed(),
                _ => io_at(&item.path)(error),
            })?;
            hasher.write(chunk);
            out.write_all_at(chunk, start + done)?;
            done += len as u64;
            progress(start + done);
        }
        let rest = item.len.next_multiple_of(BLOCK) - item.len;
        out.write_all_at(&[0; BLOCK as usize][..rest as usize], start + item.len)?;
        stands(&from)
    }
}

fn modified(meta: &Metadata) -> (i64, u32) {
    (meta.mtime(), meta.mtime_nsec() as u32)
}

fn item(path: PathBuf, kind: Kind, meta: &Metadata) -> Item {
    let links = if matches!(kind, Kind::Dir { .. }) { 2 } else { 1 };
    Item {
        path,
        kind,
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        modified: modified(meta),
        len: meta.len(),
        links,
        block: 0,
    }
}

impl Item {
    /// Its kind as a directory's entry has it.
    fn type_byte(&self) -> u8 {
        match self.kind {
            Kind::File => 1,
            Kind::Dir { .. } => 2,
            Kind::Link(_) => 7,
        }
    }
}
