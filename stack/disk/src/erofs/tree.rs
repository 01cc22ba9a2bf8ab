//! Reads all names of an image into an index, and believes none of them.

use std::collections::HashMap;

use super::format::{
    FormatError, INODE_BYTES, Inode, LINK_BYTES_MAX, Layout, SLOT_BYTES, Super, dirents,
};
use super::image::{Blocks, ImageError};
use super::index::{Dir, Extent, Index, Node};

/// Names that are kept at most: some gigabytes of memory.
const NAMES_MAX: usize = 1 << 26;

const TYPE_MASK: u16 = 0o170_000;
const TYPE_FILE: u16 = 0o100_000;
const TYPE_DIR: u16 = 0o040_000;
const TYPE_LINK: u16 = 0o120_000;

/// Reads the tree from its root on.
pub(crate) fn read(records: &(impl Blocks + ?Sized), volume: &Super) -> Result<Index, ImageError> {
    let mut reader = Reader {
        records,
        volume,
        image_bytes: u64::from(volume.blocks) * volume.block_bytes(),
        index: Index::default(),
        seen: HashMap::new(),
        pending: Vec::new(),
        dir_bytes: 0,
        block: vec![0; volume.block_bytes() as usize],
    };
    reader.node(volume.root, 0, || "/".to_owned())?;
    if !matches!(reader.index.nodes.first(), Some(Node::Dir(_))) {
        return Err(corrupt("/".to_owned(), "the root is no directory"));
    }
    // Directories are read in the order in which they were found.
    let mut next = 0;
    while let Some((node, inode, number)) = reader.pending.get(next).copied() {
        reader.directory(node, &inode, number)?;
        next += 1;
    }
    reader.index.nodes.shrink_to_fit();
    Ok(reader.index)
}

fn corrupt(path: String, what: &'static str) -> ImageError {
    FormatError::Corrupt { path, what }.into()
}

struct Reader<'a, B: ?Sized> {
    records: &'a B,
    volume: &'a Super,
    image_bytes: u64,
    index: Index,
    /// Nodes by the number of their inode.
    seen: HashMap<u64, u32>,
    /// Directories: node, inode, its number.
    pending: Vec<(u32, Inode, u64)>,
    /// Bytes of directories read so far. No two share blocks, so they fit the image.
    dir_bytes: u64,
    block: Vec<u8>,
}

impl<B: Blocks + ?Sized> Reader<'_, B> {
    /// Where an inode is.
    fn place(&self, number: u64) -> Option<u64> {
        let table = u64::from(self.volume.inode_block) * self.volume.block_bytes();
        let place = number.checked_mul(SLOT_BYTES)?.checked_add(table)?;
        // The shorter form must fit; the last inode may end the image.
        (place.checked_add(INODE_BYTES as u64 / 2)? <= self.image_bytes).then_some(place)
    }

    fn inode(&self, number: u64) -> Result<Option<Inode>, ImageError> {
        let Some(place) = self.place(number) else { return Ok(None) };
        let mut bytes = [0; INODE_BYTES];
        let there = (self.image_bytes - place).min(INODE_BYTES as u64) as usize;
        let Some(bytes) = bytes.get_mut(..there) else { return Ok(None) };
        self.records.read_at(place, bytes)?;
        Ok(Inode::parse(bytes, self.volume))
    }

    /// The node of an inode: the one that it has already, or a new one below directory `parent`.
    fn node(
        &mut self,
        number: u64,
        parent: u32,
        path: impl Fn() -> String,
    ) -> Result<u32, ImageError> {
        if let Some(&node) = self.seen.get(&number) {
            return match self.index.nodes.get(node as usize) {
                Some(Node::Dir(_)) => Err(corrupt(path(), "a directory has two names")),
                _ => Ok(node),
            };
        }
        let Some(inode) = self.inode(number)? else {
            return Err(corrupt(path(), "its inode is outside of the image"));
        };
        let node = self.index.nodes.len() as u32;
        let made = match inode.mode & TYPE_MASK {
            TYPE_FILE => Node::File(self.extent(number, &inode, &path)?),
            TYPE_DIR => {
                self.pending.push((node, inode, number));
                let modified = inode.modified;
                Node::Dir(Dir { first: 0, count: 0, parent, modified, number })
            }
            TYPE_LINK => Node::Link(self.link(number, &inode, &path)?),
            _ => Node::Other(number),
        };
        self.index.nodes.push(made);
        self.seen.insert(number, node);
        Ok(node)
    }

    /// Where a regular file lies.
    fn extent(
        &self,
        number: u64,
        inode: &Inode,
        path: &impl Fn() -> String,
    ) -> Result<Extent, ImageError> {
        let (len, modified) = (inode.len, inode.modified);
        match inode.layout {
            Layout::Plain | Layout::Inline if len == 0 => {
                return Ok(Extent { start: 0, len, modified, number });
            }
            Layout::Plain => {}
            Layout::Inline => return Err(FormatError::Inline { path: path() }.into()),
            Layout::Compressed => return Err(FormatError::Compressed { path: path() }.into()),
            Layout::Chunked => return Err(FormatError::Chunked { path: path() }.into()),
            Layout::Unknown => return Err(corrupt(path(), "its layout is not known")),
        }
        let start = u64::from(inode.block) * self.volume.block_bytes();
        if start.checked_add(len).is_none_or(|end| end > self.image_bytes) {
            return Err(corrupt(path(), "its bytes are outside of the image"));
        }
        Ok(Extent { start, len, modified, number })
    }

    /// Bytes `offset..` of a directory or a link, into `out`; not across a block.
    fn metadata(
        &self,
        number: u64,
        inode: &Inode,
        offset: u64,
        out: &mut [u8],
    ) -> Result<bool, ImageError> {
        let block_bytes = self.volume.block_bytes();
        let len = out.len() as u64;
        let last_block = inode.len.saturating_sub(1) / block_bytes * block_bytes;
        let place = match inode.layout {
            Layout::Inline if offset >= last_block => {
                let tail =
                    self.place(number).and_then(|place| place.checked_add(inode.tail_offset));
                let tail = tail.and_then(|tail| tail.checked_add(offset - last_block));
                // It lies in the block of the inode's end.
                tail.filter(|tail| tail % block_bytes + len <= block_bytes)
            }
            Layout::Plain | Layout::Inline => {
                (u64::from(inode.block) * block_bytes).checked_add(offset)
            }
            _ => None,
        };
        let inside =
            |place: &u64| place.checked_add(len).is_some_and(|end| end <= self.image_bytes);
        let Some(place) = place.filter(inside) else { return Ok(false) };
        self.records.read_at(place, out)?;
        Ok(true)
    }

    fn link(
        &self,
        number: u64,
        inode: &Inode,
        path: &impl Fn() -> String,
    ) -> Result<Box<[u8]>, ImageError> {
        if inode.len > LINK_BYTES_MAX.min(self.volume.block_bytes()) {
            return Err(corrupt(path(), "the target of a link is too long"));
        }
        let mut target = vec![0; inode.len as usize];
        if !self.metadata(number, inode, 0, &mut target)? {
            return Err(corrupt(path(), "the target of a link is outside of the image"));
        }
        Ok(target.into())
    }

    fn directory(&mut self, node: u32, inode: &Inode, number: u64) -> Result<(), ImageError> {
        let here = |reader: &Self| format!("/{}", reader.index.path(node));
        let first = self.index.len() as u32;
        let mut offset = 0;
        while offset < inode.len {
            let len = (inode.len - offset).min(self.volume.block_bytes());
            self.dir_bytes = self.dir_bytes.saturating_add(len);
            let mut block = std::mem::take(&mut self.block);
            let bytes = block.get_mut(..len as usize).unwrap_or_default();
            if self.dir_bytes > self.image_bytes || !self.metadata(number, inode, offset, bytes)? {
                return Err(corrupt(here(self), "the directory is outside of the image"));
            }
            for entry in dirents(bytes) {
                let (name, number) = entry.map_err(|what| corrupt(here(self), what))?;
                if !matches!(name, b"." | b"..") {
                    self.child(node, first, name, number)?;
                }
            }
            self.block = block;
            offset += len;
        }
        let count = self.index.len() as u32 - first;
        if let Some(Node::Dir(dir)) = self.index.nodes.get_mut(node as usize) {
            (dir.first, dir.count) = (first, count);
        }
        Ok(())
    }

    /// Adds a name to directory `dir`, whose names begin with number `first`.
    fn child(&mut self, dir: u32, first: u32, name: &[u8], number: u64) -> Result<(), ImageError> {
        let path = || String::from_utf8_lossy(name).into_owned();
        let ordered = self.index.last_name(first).is_none_or(|last| last < name);
        let node = if ordered {
            self.node(number, dir, path)
        } else {
            Err(corrupt(path(), "the names of its directory are not in order"))
        };
        let node = node.map_err(|error| match error {
            ImageError::Format(error) => error.below(&self.index.path(dir)).into(),
            error => error,
        })?;
        if self.index.len() >= NAMES_MAX || !self.index.add(name, node) {
            return Err(FormatError::TooMany { max: NAMES_MAX }.into());
        }
        Ok(())
    }
}
