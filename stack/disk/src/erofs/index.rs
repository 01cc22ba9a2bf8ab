//! The names of an image, in memory.

use crate::file::OpenError;

/// How many symbolic links one look-up follows, as in Linux.
const LINKS_MAX: u32 = 40;

/// A regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where in the image it begins.
    pub start: u64,
    pub len: u64,
    pub modified: (i64, u32),
    pub number: u64,
}

/// A directory: some of the [`Child`]ren of the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dir {
    pub first: u32,
    pub count: u32,
    pub parent: u32,
    pub modified: (i64, u32),
    pub number: u64,
}

#[derive(Debug)]
pub(crate) enum Node {
    Dir(Dir),
    File(Extent),
    Link(Box<[u8]>),
    /// A pipe, a socket, a device.
    Other(u64),
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
struct Child {
    name_at: u32,
    name_len: u8,
    node: u32,
}

/// All names of an image. Node 0 is the root.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub nodes: Vec<Node>,
    children: Vec<Child>,
    names: Vec<u8>,
}

impl Index {
    /// Adds a name to the directory that is being filled. `false` if there is no room for more.
    pub fn add(&mut self, name: &[u8], node: u32) -> bool {
        let (Ok(name_at), Ok(name_len)) =
            (u32::try_from(self.names.len()), u8::try_from(name.len()))
        else {
            return false;
        };
        self.names.extend_from_slice(name);
        self.children.push(Child { name_at, name_len, node });
        true
    }

    /// Names in all.
    pub fn len(&self) -> usize {
        self.children.len()
    }

    fn name(&self, child: &Child) -> &[u8] {
        let start = child.name_at as usize;
        self.names.get(start..start + usize::from(child.name_len)).unwrap_or_default()
    }

    fn children(&self, dir: &Dir) -> &[Child] {
        let first = dir.first as usize;
        self.children.get(first..first + dir.count as usize).unwrap_or_default()
    }

    /// The last name that was added, if it is in the directory whose names begin with number `first`.
    pub fn last_name(&self, first: u32) -> Option<&[u8]> {
        let last = self.children.get(first as usize..)?.last()?;
        Some(self.name(last))
    }

    /// The path of a directory, for people.
    pub fn path(&self, mut node: u32) -> String {
        let mut names = Vec::new();
        while node != 0
            && let Some(Node::Dir(dir)) = self.nodes.get(node as usize)
            && let Some(Node::Dir(parent)) = self.nodes.get(dir.parent as usize)
        {
            let found = self.children(parent).iter().find(|child| child.node == node);
            names.push(found.map_or("?".into(), |child| String::from_utf8_lossy(self.name(child))));
            node = dir.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// What is at `path`, relative to the root. Links are followed as long as they stay inside.
    pub fn find(&self, path: &[u8]) -> Result<u32, OpenError> {
        let climbs = path.split(|&byte| byte == b'/').any(|name| name == b"..");
        if climbs || path.first() == Some(&b'/') {
            return Err(OpenError::Forbidden);
        }
        self.walk(0, path, &mut LINKS_MAX.clone())
    }

    /// Goes down from directory `from`. What calls itself here is bounded by `links_left`.
    fn walk(&self, from: u32, path: &[u8], links_left: &mut u32) -> Result<u32, OpenError> {
        let mut at = from;
        for name in path.split(|&byte| byte == b'/') {
            let Some(Node::Dir(dir)) = self.nodes.get(at as usize) else {
                return Err(OpenError::NotFound);
            };
            at = match name {
                b"" | b"." => at,
                b".." if at == 0 => return Err(OpenError::Forbidden),
                b".." => dir.parent,
                name => {
                    let children = self.children(dir);
                    let found = children.binary_search_by(|child| self.name(child).cmp(name));
                    let child = found.ok().and_then(|found| children.get(found));
                    let node = child.ok_or(OpenError::NotFound)?.node;
                    match self.nodes.get(node as usize) {
                        Some(Node::Link(target)) => {
                            if target.first() == Some(&b'/') || *links_left == 0 {
                                return Err(OpenError::Forbidden);
                            }
                            *links_left -= 1;
                            self.walk(at, target, links_left)?
                        }
                        _ => node,
                    }
                }
            };
        }
        Ok(at)
    }

    /// Every regular file with its path, for checking an image against another reader.
    pub fn files(&self) -> impl Iterator<Item = (Vec<u8>, Extent)> {
        let mut pending = vec![(Vec::new(), 0_u32)];
        std::iter::from_fn(move || {
            loop {
                let (path, node) = pending.pop()?;
                match self.nodes.get(node as usize)? {
                    Node::File(extent) => return Some((path, *extent)),
                    Node::Dir(dir) => pending.extend(self.children(dir).iter().map(|child| {
                        let mut below = path.clone();
                        if !below.is_empty() {
                            below.push(b'/');
                        }
                        below.extend_from_slice(self.name(child));
                        (below, child.node)
                    })),
                    Node::Link(_) | Node::Other(_) => {}
                }
            }
        })
    }
}
