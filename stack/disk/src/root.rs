//! A directory below which files are opened, and never outside it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::file::{File, FileStat, OpenError};
use crate::sys::{self, CPath};

/// Why a directory cannot be a root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// There is none of that name.
    #[error("there is no directory `{}`; make it or name another one", path.display())]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// It is a file.
    #[error("`{}` is not a directory; name the directory that holds the files", path.display())]
    NotDirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// Anything else the system said.
    #[error("cannot open the directory `{}` ({source}); check its permissions", path.display())]
    Io {
        /// What was asked for.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// An open directory that names from strangers are looked up in. Cloning gives another handle.
///
/// A relative path is a run of names between slashes. `..` and absolute paths are refused.
/// Symbolic links are followed as long as they stay below the root; where the kernel has no
/// `openat2` (before 5.6, or refused by a sandbox), none is followed. A root that is renamed stays
/// the same directory.
#[derive(Clone, Debug)]
pub struct Root {
    dir: Arc<OwnedFd>,
    lookup: Lookup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lookup {
    /// One `openat2`; the kernel keeps it inside.
    Beneath,
    /// Name by name, through no link.
    Stepwise,
}

impl Root {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`RootError`] if it is none or cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RootError> {
        let path = path.as_ref();
        let dir = CPath::new(path.as_os_str().as_bytes())
            .and_then(|path| sys::open_at(None, &path, libc::O_PATH | libc::O_DIRECTORY))
            .map_err(|errno| {
                let path = path.to_owned();
                match errno {
                    libc::ENOENT => RootError::NotFound { path },
                    libc::ENOTDIR => RootError::NotDirectory { path },
                    errno => {
                        RootError::Io { path, source: std::io::Error::from_raw_os_error(errno) }
                    }
                }
            })?;
        let probe = CPath::new(b".").and_then(|here| {
            sys::open_beneath(dir.as_fd(), &here, libc::O_PATH | libc::O_DIRECTORY, false)
        });
        let lookup = match probe {
            Err(errno @ (libc::ENOSYS | libc::EPERM)) => {
                tracing::info!(
                    errno,
                    "the kernel refuses openat2: symbolic links in `{}` are not followed",
                    path.display()
                );
                Lookup::Stepwise
            }
            _ => Lookup::Beneath,
        };
        Ok(Self { dir: Arc::new(dir), lookup })
    }

    /// Opens the regular file at `relative` (bytes of a path, without a leading slash).
    ///
    /// # Errors
    /// [`OpenError::Forbidden`] if the path leaves the root; the others as [`File::open`] has them.
    pub fn open_file(&self, relative: &[u8]) -> Result<File, OpenError> {
        let path = self.prepare(relative)?;
        File::open_with(|flags| self.lookup(relative, &path, flags))
    }

    /// As [`Self::open_file`], if that needs nothing but the kernel's caches.
    ///
    /// # Errors
    /// As [`Self::open_file`], and [`OpenError::WouldBlock`].
    pub fn open_file_at_hand(&self, relative: &[u8]) -> Result<File, OpenError> {
        let path = self.prepare(relative)?;
        File::open_with(|flags| self.lookup_at_hand(&path, flags)).map_err(at_hand)
    }

    /// As [`Self::stat`], if that needs nothing but the kernel's caches.
    ///
    /// # Errors
    /// As [`Self::stat`], and [`OpenError::WouldBlock`].
    pub fn stat_at_hand(&self, relative: &[u8]) -> Result<FileStat, OpenError> {
        let path = self.prepare(relative)?;
        let opened = self.lookup_at_hand(&path, libc::O_PATH);
        let raw = opened.and_then(|fd| sys::stat(fd.as_fd())).map_err(OpenError::from_errno);
        raw.map(|raw| FileStat::new(&raw)).map_err(at_hand)
    }

    /// What is at `relative`, without opening it for reading. The empty path is the root itself.
    ///
    /// # Errors
    /// As [`Self::open_file`], but any kind of file has an answer.
    pub fn stat(&self, relative: &[u8]) -> Result<FileStat, OpenError> {
        let path = self.prepare(relative)?;
        let raw = self
            .lookup(relative, &path, libc::O_PATH)
            .and_then(|fd| sys::stat(fd.as_fd()))
            .map_err(OpenError::from_errno)?;
        // O_PATH with O_NOFOLLOW opens a link itself.
        if raw.mode & libc::S_IFMT == libc::S_IFLNK {
            return Err(OpenError::Forbidden);
        }
        Ok(FileStat::new(&raw))
    }

    /// Refuses what can be refused by looking at the path alone.
    fn prepare(&self, relative: &[u8]) -> Result<CPath, OpenError> {
        let climbs = relative.split(|&byte| byte == b'/').any(|name| name == b"..");
        if climbs || relative.first() == Some(&b'/') {
            return Err(OpenError::Forbidden);
        }
        let path: &[u8] = if relative.is_empty() { b"." } else { relative };
        CPath::new(path).map_err(OpenError::from_errno)
    }

    fn lookup(&self, relative: &[u8], path: &CPath, flags: i32) -> Result<OwnedFd, i32> {
        match self.lookup {
            Lookup::Beneath => sys::open_beneath(self.dir.as_fd(), path, flags, false),
            Lookup::Stepwise => self.open_stepwise(relative, flags),
        }
    }

    fn lookup_at_hand(&self, path: &CPath, flags: i32) -> Result<OwnedFd, i32> {
        match self.lookup {
            Lookup::Beneath => match sys::open_beneath(self.dir.as_fd(), path, flags, true) {
                // Either the kernel is older, or there are no direct reads here.
                Err(libc::EINVAL) if flags & libc::O_DIRECT == 0 => Err(libc::EAGAIN),
                opened => opened,
            },
            Lookup::Stepwise => Err(libc::EAGAIN),
        }
    }

    /// Opens each directory on the way with `O_NOFOLLOW`, so that nobody can put a link in between
    /// a check and its use.
    fn open_stepwise(&self, relative: &[u8], mut flags: i32) -> Result<OwnedFd, i32> {
        if relative.last() == Some(&b'/') {
            flags |= libc::O_DIRECTORY;
        }
        let mut names = relative
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .peekable();
        let Some(mut name) = names.next() else {
            return sys::open_at(Some(self.dir.as_fd()), &CPath::new(b".")?, flags);
        };
        let mut below: Option<OwnedFd> = None;
        for next in names {
            let dir = below.as_ref().unwrap_or(&self.dir).as_fd();
            let step = CPath::new(name)?;
            let step_flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            let opened = sys::open_at(Some(dir), &step, step_flags).map_err(|errno| {
                if errno == libc::ENOTDIR && sys::is_link(dir, &step) { libc::ELOOP } else { errno }
            });
            below = Some(opened?);
            name = next;
        }
        let dir = below.as_ref().unwrap_or(&self.dir).as_fd();
        let last = CPath::new(name)?;
        sys::open_at(Some(dir), &last, flags | libc::O_NOFOLLOW).map_err(|errno| {
            if errno == libc::ENOTDIR && sys::is_link(dir, &last) { libc::ELOOP } else { errno }
        })
    }
}

fn at_hand(error: OpenError) -> OpenError {
    if error == (OpenError::Io { errno: libc::EAGAIN }) { OpenError::WouldBlock } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::FileKind;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory of its own for each test, removed at its end.
    struct Tree(PathBuf);

    impl Tree {
        /// `root/` with files in it, and a secret beside it.
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "millstream-root-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let tree = Self(std::env::temp_dir().join(name));
            fs::create_dir_all(tree.0.join("root/sub/deep")).unwrap();
            fs::create_dir(tree.0.join("outside")).unwrap();
            fs::write(tree.0.join("secret"), "secret").unwrap();
            fs::write(tree.0.join("outside/secret"), "secret").unwrap();
            fs::write(tree.0.join("root/index.html"), "hello").unwrap();
            fs::write(tree.0.join("root/sub/deep/file"), "deep file").unwrap();
            tree
        }

        fn root(&self) -> PathBuf {
            self.0.join("root")
        }

        /// The root, once with each way of looking names up that this kernel has.
        fn roots(&self) -> Vec<Root> {
            let root = Root::open(self.root()).unwrap();
            if root.lookup == Lookup::Stepwise {
                // Who refuses openat2 refuses io_uring too: one word for both.
                assert!(std::env::var_os("MILLSTREAM_REQUIRE_IO_URING").is_none(), "no openat2");
                eprintln!("not run with openat2: the kernel refuses it");
            }
            vec![Root { lookup: Lookup::Stepwise, ..root.clone() }, root]
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What both calls say, which must be the same.
    fn error(root: &Root, path: &[u8]) -> OpenError {
        let error = root.open_file(path).expect_err("must not open");
        assert_eq!(root.stat(path).err(), Some(error), "{root:?}");
        error
    }

    #[test]
    fn files_inside_open_and_agree_with_their_stat() {
        let tree = Tree::new();
        for root in tree.roots() {
            for (path, len) in [
                (&b"index.html"[..], 5),
                (b"sub/deep/file", 9),
                (b"sub//deep/./file", 9),
                (b"./index.html", 5),
            ] {
                let file = root.open_file(path).unwrap();
                assert_eq!(file.len(), len);
                assert_eq!(root.stat(path), Ok(file.stat()));
                assert_eq!(file.stat().kind, FileKind::Regular);
                let modified = fs::metadata(tree.root().join("sub/../index.html")).unwrap();
                if len == 5 {
                    assert_eq!(file.modified(), modified.modified().unwrap());
                }
            }
        }
    }

    #[test]
    fn a_changed_file_has_another_stat() {
        let tree = Tree::new();
        let root = Root::open(tree.root()).unwrap();
        let before = root.open_file(b"index.html").unwrap();
        fs::write(tree.root().join("new"), "other").unwrap();
        fs::rename(tree.root().join("new"), tree.root().join("index.html")).unwrap();
        assert_ne!(root.stat(b"index.html").unwrap(), before.stat());
    }

    #[test]
    fn nothing_outside_opens() {
        let tree = Tree::new();
        let at = tree.root();
        let secret = tree.0.join("secret");
        symlink(&secret, at.join("absolute")).unwrap();
        symlink("../secret", at.join("climbing")).unwrap();
        symlink("../../../secret", at.join("sub/deep/climbing")).unwrap();
        symlink("../outside", at.join("directory")).unwrap();
        symlink("directory", at.join("chain")).unwrap();
        symlink("/proc/self/root", at.join("magic")).unwrap();
        // A link whose way leads out and in again leaves the root too.
        symlink("../root/index.html", at.join("round")).unwrap();
        let absolute = secret.to_str().unwrap().as_bytes().to_vec();
        for root in tree.roots() {
            for path in [
                &b"../secret"[..],
                b"..",
                b"sub/../../secret",
                b"sub/deep/../../../secret",
                b"/index.html",
                b"/etc/passwd",
                &absolute,
                b"absolute",
                b"climbing",
                b"sub/deep/climbing",
                b"directory/secret",
                b"chain/secret",
                b"magic/etc/passwd",
                b"round",
            ] {
                let path_text = String::from_utf8_lossy(path);
                assert_eq!(error(&root, path), OpenError::Forbidden, "{path_text} {root:?}");
            }
        }
    }

    #[test]
    fn links_inside_are_followed_where_the_kernel_keeps_them_inside() {
        let tree = Tree::new();
        symlink("sub/deep/file", tree.root().join("link")).unwrap();
        symlink("sub", tree.root().join("way")).unwrap();
        symlink("../../index.html", tree.root().join("sub/deep/up")).unwrap();
        symlink("loop", tree.root().join("loop")).unwrap();
        for root in tree.roots() {
            for (path, len) in [(&b"link"[..], 9), (b"way/deep/file", 9), (b"sub/deep/up", 5)] {
                match root.lookup {
                    Lookup::Beneath => assert_eq!(root.open_file(path).unwrap().len(), len),
                    Lookup::Stepwise => assert_eq!(error(&root, path), OpenError::Forbidden),
                }
            }
            assert_eq!(error(&root, b"loop"), OpenError::Forbidden);
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let tree = Tree::new();
        let fifo = tree.root().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let _socket = std::os::unix::net::UnixListener::bind(tree.root().join("socket")).unwrap();
        for root in tree.roots() {
            // Opening a pipe that nobody writes would wait for ever.
            assert_eq!(root.open_file(b"fifo").err(), Some(OpenError::NotRegular));
            assert_eq!(root.open_file(b"socket").err(), Some(OpenError::NotRegular));
            assert_eq!(root.stat(b"fifo").unwrap().kind, FileKind::Other);
            for path in [&b""[..], b".", b"sub", b"sub/", b"sub/deep/."] {
                assert_eq!(root.open_file(path).err(), Some(OpenError::IsDirectory));
                assert_eq!(root.stat(path).unwrap().kind, FileKind::Directory);
            }
        }
        assert_eq!(File::open(&fifo).err(), Some(OpenError::NotRegular));
        assert_eq!(File::open("/dev/zero".as_ref()).err(), Some(OpenError::NotRegular));
        assert_eq!(File::open(&tree.root()).err(), Some(OpenError::IsDirectory));
    }

    #[test]
    fn names_that_no_file_has_are_not_found() {
        let tree = Tree::new();
        let long_name = vec![b'a'; 256];
        let long_path = b"sub/".repeat(1024);
        let longer_path = b"sub/".repeat(1100);
        for root in tree.roots() {
            for path in [
                &b"missing"[..],
                b"missing/file",
                b"index.html/",
                b"index.html/below",
                b"nul\0byte",
                b"index.html\0",
                b"\xff\xfe",
                &long_name,
                &long_path,
                &longer_path,
            ] {
                assert_eq!(error(&root, path), OpenError::NotFound, "{}", path.len());
            }
        }
    }

    /// However names, dots and links are strung together, what opens lies inside.
    #[test]
    fn no_path_leads_out() {
        const NAMES: [&str; 12] = [
            "..",
            ".",
            "",
            "sub",
            "deep",
            "file",
            "index.html",
            "secret",
            "out",
            "in",
            "slash",
            "root",
        ];
        let tree = Tree::new();
        symlink("../outside", tree.root().join("out")).unwrap();
        symlink("../../../secret", tree.root().join("sub/deep/out")).unwrap();
        symlink("deep/..", tree.root().join("sub/in")).unwrap();
        symlink("/", tree.root().join("sub/slash")).unwrap();
        let roots = tree.roots();
        let inside = ["index.html", "sub/deep/file"]
            .map(|path| File::open(&tree.root().join(path)).unwrap().id());
        let names = prop::collection::vec(prop::sample::select(&NAMES[..]), 0..8);
        let config = ProptestConfig::with_cases(500);
        let outcome = TestRunner::new(config).run(&names, |names| {
            let path = names.join("/");
            for root in &roots {
                if let Ok(file) = root.open_file(path.as_bytes()) {
                    prop_assert!(inside.contains(&file.id()), "{path}");
                }
                if path.starts_with('/') || names.contains(&"..") {
                    prop_assert_eq!(error(root, path.as_bytes()), OpenError::Forbidden);
                }
            }
            Ok(())
        });
        outcome.unwrap();
    }

    #[test]
    fn a_root_stays_the_same_directory_when_renamed() {
        let tree = Tree::new();
        let roots = tree.roots();
        fs::rename(tree.root(), tree.0.join("moved")).unwrap();
        for root in roots {
            assert_eq!(root.open_file(b"index.html").unwrap().len(), 5);
        }
    }

    #[test]
    fn a_bad_root_is_a_sentence() {
        let tree = Tree::new();
        let missing = Root::open(tree.0.join("missing")).unwrap_err();
        assert!(matches!(missing, RootError::NotFound { .. }), "{missing}");
        assert!(missing.to_string().contains("missing`; make it"), "{missing}");
        let file = Root::open(tree.0.join("secret")).unwrap_err();
        assert!(matches!(file, RootError::NotDirectory { .. }), "{file}");
    }
}
