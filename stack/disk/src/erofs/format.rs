//! The records of the format, out of bytes and into bytes.

/// Where the superblock is, in bytes.
pub(crate) const SUPER_OFFSET: u64 = 1024;

/// Bytes of the superblock.
pub(crate) const SUPER_BYTES: usize = 128;

/// Bytes of a place in the table of inodes; an inode's number counts them.
pub(crate) const SLOT_BYTES: u64 = 32;

/// Bytes of an inode in its longer form.
pub(crate) const INODE_BYTES: usize = 64;

/// Bytes of a directory's entry, without its name.
pub(crate) const DIRENT_BYTES: usize = 12;

/// The longest name.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// The longest target of a symbolic link.
pub(crate) const LINK_BYTES_MAX: u64 = 4096;

const MAGIC: u32 = 0xe0f5_e1e2;

/// `feature_compat`: the superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// `feature_compat`: inodes have times of change.
const COMPAT_MTIME: u32 = 2;

/// `feature_incompat`: what concerns compressed files or attributes alone, or is refused file by
/// file: zero padding, compression's settings, chunks, a second algorithm, packed tails, fragments,
/// prefixes of attributes. The next two, 48-bit addresses and a box for metadata, change inodes.
const INCOMPAT_KNOWN: u32 = 0x7f;

/// Smallest and largest blocks: a sector, and a buffer of the arena.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=14;

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin as one.
    #[error("it is no EROFS image; make one with `millstream image DIR FILE`")]
    NotErofs,
    /// The superblock does not have the checksum that it names.
    #[error("its superblock is damaged (wrong checksum); copy the image again")]
    Checksum,
    /// It needs something newer.
    #[error(
        "it needs features that are not known here ({bits:#x}); make it with `millstream image DIR FILE`"
    )]
    Features {
        /// Bits of `feature_incompat`.
        bits: u32,
    },
    /// Its blocks are too small or too large.
    #[error("its blocks are of 2^{bits} bytes; make it with blocks of 4096 (`mkfs.erofs -b4096`)")]
    BlockSize {
        /// What the superblock says.
        bits: u8,
    },
    /// Part of it is elsewhere.
    #[error(
        "it lies on several devices; make one of a single piece with `millstream image DIR FILE`"
    )]
    Devices,
    /// The image ends before it should.
    #[error("it has {len} bytes and should have {want}; copy the image again")]
    CutShort {
        /// Bytes that there are.
        len: u64,
        /// Bytes that the superblock promises.
        want: u64,
    },
    /// A file is compressed.
    #[error(
        "`{path}` is compressed in it; make it without `-z`, or with `millstream image DIR FILE`"
    )]
    Compressed {
        /// The file.
        path: String,
    },
    /// A file's last bytes lie beside its inode.
    #[error(
        "the end of `{path}` lies between other records; make it with `mkfs.erofs -Enoinline_data`, or with `millstream image DIR FILE`"
    )]
    Inline {
        /// The file.
        path: String,
    },
    /// A file lies in several pieces.
    #[error(
        "`{path}` lies in chunks; make it without `--chunksize`, or with `millstream image DIR FILE`"
    )]
    Chunked {
        /// The file.
        path: String,
    },
    /// There are more names than are kept.
    #[error("it has more than {max} names; divide it into several images")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// A record that cannot be.
    #[error("it is damaged at `{path}`: {what}; make the image again")]
    Corrupt {
        /// The file or directory.
        path: String,
        /// What cannot be.
        what: &'static str,
    },
}

impl FormatError {
    /// The same of a file in directory `dir`.
    pub(crate) fn below(mut self, dir: &str) -> Self {
        if let Self::Compressed { path }
        | Self::Inline { path }
        | Self::Chunked { path }
        | Self::Corrupt { path, .. } = &mut self
            && !dir.is_empty()
        {
            *path = format!("{dir}/{path}");
        }
        self
    }
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    array(bytes, at).map_or(0, u16::from_le_bytes)
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    array(bytes, at).map_or(0, u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    array(bytes, at).map_or(0, u64::from_le_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// CRC-32C (Castagnoli) as the kernel computes it: from all ones, not inverted at the end.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// The superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Super {
    pub block_bits: u8,
    pub root: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Seconds and nanoseconds at which the image was made.
    pub built: (i64, u32),
    /// Blocks in all.
    pub blocks: u32,
    /// The block with which the table of inodes begins.
    pub inode_block: u32,
    pub uuid: [u8; 16],
    has_checksum: bool,
    has_times: bool,
}

impl Super {
    pub fn block_bytes(&self) -> u64 {
        1 << self.block_bits
    }

    /// Reads the first [`SUPER_BYTES`] of the superblock.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < SUPER_BYTES || le32(bytes, 0) != MAGIC {
            return Err(FormatError::NotErofs);
        }
        let incompat = le32(bytes, 80);
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(FormatError::Features { bits: incompat & !INCOMPAT_KNOWN });
        }
        let block_bits = bytes[12];
        if !BLOCK_BITS.contains(&block_bits) || bytes[90] != 0 {
            return Err(FormatError::BlockSize { bits: block_bits.saturating_add(bytes[90]) });
        }
        if le16(bytes, 86) != 0 {
            return Err(FormatError::Devices);
        }
        let compat = le32(bytes, 8);
        Ok(Self {
            block_bits,
            root: u64::from(le16(bytes, 14)),
            inodes: le64(bytes, 16),
            built: (le64(bytes, 24).cast_signed(), le32(bytes, 32)),
            blocks: le32(bytes, 36),
            inode_block: le32(bytes, 40),
            uuid: array(bytes, 48).unwrap_or_default(),
            has_checksum: compat & COMPAT_CHECKSUM != 0,
            has_times: compat & COMPAT_MTIME != 0,
        })
    }

    /// How many bytes from the superblock on its checksum covers: to the end of its block.
    pub fn checked_bytes(&self) -> usize {
        let block = self.block_bytes();
        (if block > SUPER_OFFSET { block - SUPER_OFFSET } else { block }) as usize
    }

    /// Whether `bytes`, [`Self::checked_bytes`] of them, have the checksum that the superblock in
    /// them names, if it names one.
    pub fn checksum_is_right(&self, bytes: &[u8]) -> bool {
        let mut bytes = bytes.to_vec();
        let named = le32(&bytes, 4);
        if let Some(field) = bytes.get_mut(4..8) {
            field.fill(0);
        }
        !self.has_checksum || crc32c(&bytes) == named
    }

    /// A superblock for an image that [`Plan`](super::Plan) makes: blocks of 4 KiB.
    pub fn new(root: u64, inodes: u64, built: (i64, u32), blocks: u32) -> Self {
        Self {
            block_bits: 12,
            root,
            inodes,
            built,
            blocks,
            inode_block: 0,
            uuid: [0; 16],
            has_checksum: true,
            has_times: true,
        }
    }

    /// Writes it, with the checksum over `rest`, what follows in its block.
    pub fn emit(&self, rest: &[u8]) -> [u8; SUPER_BYTES] {
        let mut out = [0; SUPER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        let times = if self.has_times { COMPAT_MTIME } else { 0 };
        let checksum = if self.has_checksum { COMPAT_CHECKSUM } else { 0 };
        put(8, &(times | checksum).to_le_bytes());
        put(12, &[self.block_bits]);
        put(14, &(self.root as u16).to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.built.0.to_le_bytes());
        put(32, &self.built.1.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.inode_block.to_le_bytes());
        put(48, &self.uuid);
        if self.has_checksum {
            let mut covered = out.to_vec();
            covered.extend_from_slice(rest);
            let checksum = crc32c(&covered);
            out[4..8].copy_from_slice(&checksum.to_le_bytes());
        }
        out
    }
}

/// How an inode's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In one piece.
    Plain,
    /// All but the last block in one piece; the rest behind the inode.
    Inline,
    Compressed,
    Chunked,
    /// A value that is not known.
    Unknown,
}

/// An inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub mode: u16,
    pub len: u64,
    pub modified: (i64, u32),
    pub layout: Layout,
    /// The block with which its bytes begin.
    pub block: u32,
    /// Bytes from the inode's first to what lies behind it.
    pub tail_offset: u64,
}

impl Inode {
    /// Reads up to [`INODE_BYTES`]; the shorter form has half of them. `None` if there are too few.
    pub fn parse(bytes: &[u8], volume: &Super) -> Option<Self> {
        let format = le16(bytes, 0);
        let extended = format & 1 == 1;
        let inode_bytes = if extended { INODE_BYTES } else { INODE_BYTES / 2 };
        if bytes.len() < inode_bytes {
            return None;
        }
        let layout = match format >> 1 {
            0 => Layout::Plain,
            1 | 3 => Layout::Compressed,
            2 => Layout::Inline,
            4 => Layout::Chunked,
            _ => Layout::Unknown,
        };
        // A header of 12 bytes and the first four come as one.
        let attributes = match u64::from(le16(bytes, 2)) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let modified = match (extended, volume.has_times) {
            (true, true) => (le64(bytes, 32).cast_signed(), le32(bytes, 40)),
            _ => volume.built,
        };
        Some(Self {
            mode: le16(bytes, 4),
            len: if extended { le64(bytes, 8) } else { u64::from(le32(bytes, 8)) },
            modified,
            layout,
            block: le32(bytes, 16),
            tail_offset: inode_bytes as u64 + attributes,
        })
    }
}

/// An inode in its longer form, as it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewInode {
    pub number: u32,
    pub mode: u16,
    pub links: u32,
    pub owner: (u32, u32),
    pub len: u64,
    pub modified: (i64, u32),
    pub block: u32,
}

impl NewInode {
    pub fn emit(&self) -> [u8; INODE_BYTES] {
        let mut out = [0; INODE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &1_u16.to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.len.to_le_bytes());
        put(16, &self.block.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &self.owner.0.to_le_bytes());
        put(28, &self.owner.1.to_le_bytes());
        put(32, &self.modified.0.to_le_bytes());
        put(40, &self.modified.1.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        out
    }
}

/// The entries of one block of a directory, each a name and the number of its inode. An item is an
/// error if the block cannot be one; nothing comes after it.
pub(crate) fn dirents(block: &[u8]) -> impl Iterator<Item = Result<(&[u8], u64), &'static str>> {
    let first = usize::from(le16(block, 8));
    let fits = first >= DIRENT_BYTES
        && first.is_multiple_of(DIRENT_BYTES)
        && first <= block.len()
        && block.len() > DIRENT_BYTES;
    let count = if fits { first / DIRENT_BYTES } else { 1 };
    let mut failed = false;
    (0..count).map_while(move |index| {
        if failed {
            return None;
        }
        let entry = dirent(block, index, count).filter(|_| fits);
        failed = entry.is_none();
        Some(entry.ok_or("a directory's entry does not fit its block"))
    })
}

fn dirent(block: &[u8], index: usize, count: usize) -> Option<(&[u8], u64)> {
    let at = index * DIRENT_BYTES;
    let start = usize::from(le16(block, at + 8));
    let name = if index + 1 < count {
        block.get(start..usize::from(le16(block, at + DIRENT_BYTES + 8)))?
    } else {
        let rest = block.get(start..)?;
        let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
        rest.get(..end)?
    };
    let clean = !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && start >= count * DIRENT_BYTES;
    (clean && fits).then(|| (name, le64(block, at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_kernels() {
        // CRC-32C of "123456789" is e3069283, which is inverted at the end (RFC 3720 B.4's polynomial).
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read() {
        let volume = Super { uuid: [7; 16], ..Super::new(36, 5, (-3, 9), 77) };
        let rest = [1; 4096 - 1024 - SUPER_BYTES];
        let mut block = volume.emit(&rest).to_vec();
        assert_eq!(Super::parse(&block), Ok(volume));
        block.extend_from_slice(&rest);
        assert_eq!(block.len(), volume.checked_bytes());
        assert!(volume.checksum_is_right(&block));
        for at in [5, 60, 3000] {
            let mut damaged = block.clone();
            damaged[at] ^= 1;
            assert!(!volume.checksum_is_right(&damaged), "byte {at}");
        }
        let inode = NewInode {
            number: 3,
            mode: 0o100_644,
            links: 2,
            owner: (1, 2),
            len: 1 << 40,
            modified: (1 << 33, 5),
            block: 9,
        };
        let read = Inode::parse(&inode.emit(), &volume).unwrap();
        assert_eq!((read.mode, read.len, read.block), (0o100_644, 1 << 40, 9));
        assert_eq!(
            (read.modified, read.layout, read.tail_offset),
            ((1 << 33, 5), Layout::Plain, 64)
        );
    }

    #[test]
    fn superblocks_that_cannot_be_read_are_named() {
        let good = Super::new(36, 5, (0, 0), 77).emit(&[]);
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Super::parse(&bytes)
        };
        assert_eq!(with(0, 0), Err(FormatError::NotErofs));
        assert_eq!(with(80, 0x80), Err(FormatError::Features { bits: 0x80 }));
        assert!(with(80, 0x07).is_ok(), "of compressed files alone");
        assert_eq!(with(12, 16), Err(FormatError::BlockSize { bits: 16 }));
        assert_eq!(with(12, 255), Err(FormatError::BlockSize { bits: 255 }));
        assert_eq!(with(86, 1), Err(FormatError::Devices));
        assert_eq!(Super::parse(&good[..100]), Err(FormatError::NotErofs));
    }

    #[test]
    fn entries_of_a_directory() {
        let entry = |nid: u64, name_at: u16| {
            let mut bytes = nid.to_le_bytes().to_vec();
            bytes.extend_from_slice(&name_at.to_le_bytes());
            bytes.extend_from_slice(&[2, 0]);
            bytes
        };
        let block = [entry(3, 24), entry(4, 25), b".file\0\0".to_vec()].concat();
        let read: Vec<_> = dirents(&block).collect();
        assert_eq!(read, [Ok((&b"."[..], 3)), Ok((&b"file"[..], 4))]);
        for (at, byte) in [(8, 0), (8, 13), (9, 200), (20, 10), (20, 99), (25, b'/')] {
            let mut damaged = block.clone();
            damaged[at] = byte;
            assert!(dirents(&damaged).any(|entry| entry.is_err()), "{at} {byte}");
            assert!(dirents(&damaged).count() <= 2);
        }
        assert!(dirents(&[]).all(|entry| entry.is_err()));
    }
}
