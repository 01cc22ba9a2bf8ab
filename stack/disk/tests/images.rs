//! Images that are packed are read back the same: by the reader here, by the kernel's mount, by
//! erofs-utils; and images that mkfs.erofs makes are read or refused.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use millstream_buf::{Arena, ArenaConfig, BLOCK_BYTES, HugePages, SizeClass};
use millstream_disk::erofs::{FormatError, Image, ImageError, PackError, Plan};
use millstream_disk::{
    Completions, DiskError, DiskQueue, File, FileKind, OpenError, QueueKind, Read, open_queue,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// Reads whole files through a queue, as a server does.
struct Reader {
    queue: Box<dyn DiskQueue>,
    arena: Arena,
}

impl Reader {
    fn new() -> Self {
        let config = ArenaConfig { frames: 0, blocks: 2, huge_pages: HugePages::Never };
        let arena = Arena::new(&config).unwrap();
        Self { queue: open_queue(QueueKind::Auto, &arena, 1).unwrap(), arena }
    }

    fn read(&mut self, file: &File) -> Result<Vec<u8>, DiskError> {
        let mut all = Vec::new();
        while (all.len() as u64) < file.len() {
            let buf = self.arena.alloc(SizeClass::Block).unwrap();
            let offset = all.len() as u64;
            let read = Read { file: file.clone(), offset, len: BLOCK_BYTES, buf, token: 0 };
            self.queue.submit(read).unwrap();
            let mut done = Completions::new();
            let deadline = Instant::now() + Duration::from_secs(60);
            while done.is_empty() {
                assert!(Instant::now() < deadline, "a read does not end");
                self.queue.poll(&mut done);
            }
            let done = done.remove(0);
            all.extend_from_slice(&done.buf[..done.result?]);
        }
        Ok(all)
    }
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// A tree with all that may be in one.
fn tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("sub/deeper/deepest")).unwrap();
    fs::create_dir(at("none")).unwrap();
    for (name, len) in [
        ("empty", 0),
        ("one", 1),
        ("block", 4096),
        ("sub/blocks", 8192),
        ("sub/odd", 16385),
        ("sub/deeper/deepest/large", 300_001),
        ("!before the dots", 10),
    ] {
        fs::write(at(name), bytes(len, len as u64 + 1)).unwrap();
    }
    // More names than a block of the directory holds.
    fs::create_dir(at("many")).unwrap();
    for number in 0..500 {
        fs::write(at(&format!("many/file-{number}-with-a-rather-long-name")), [number as u8])
            .unwrap();
    }
    fs::hard_link(at("sub/odd"), at("again")).unwrap();
    symlink("sub/odd", at("link")).unwrap();
    symlink("../../one", at("sub/deeper/up")).unwrap();
    symlink("sub/deeper", at("way")).unwrap();
    dir
}

/// Regular files below a directory, by path.
fn files_below(dir: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn pack(dir: &Path, image: &Path) -> Plan {
    let plan = Plan::scan(dir).unwrap();
    let out = fs::File::create(image).unwrap();
    let mut last = 0;
    let packed = plan
        .write(&out, |done| {
            assert!(done >= last, "progress goes on");
            last = done;
        })
        .unwrap();
    assert_eq!(last, packed.image_bytes);
    assert_eq!(fs::metadata(image).unwrap().len(), packed.image_bytes);
    plan
}

fn assert_same(image: &Image, dir: &Path) {
    let mut reader = Reader::new();
    let expected = files_below(dir);
    let mut seen = 0;
    for (path, file) in image.files() {
        let meta = fs::metadata(dir.join(OsStr::from_bytes(&path))).unwrap();
        assert_eq!(file.modified(), meta.modified().unwrap());
        assert_eq!(image.stat(&path), Ok(file.stat()));
        assert_eq!(image.open_file(&path).unwrap().stat(), file.stat());
        assert!(reader.read(&file).unwrap() == expected[&path], "{path:?}");
        seen += 1;
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn what_is_packed_is_read() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let plan = pack(tree.path(), &path);
    assert_eq!((plan.files(), plan.skipped()), (507, 0));
    let image = Image::open(&path).unwrap();
    assert_same(&image, tree.path());
    assert_eq!(image.names(), 508 + 5 + 3, "files, one twice; directories, links");
    assert_eq!(image.stat(b"").unwrap().kind, FileKind::Directory);
    assert_eq!(image.stat(b"sub/").unwrap().kind, FileKind::Directory);
    let again = image.open_file(b"again").unwrap();
    assert_eq!(again.id(), image.open_file(b"sub/odd").unwrap().id(), "one file of two names");
}

#[test]
fn the_kernel_mounts_the_same_tree() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    pack(tree.path(), &path);
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap();
    let kernel = filesystems.lines().any(|line| line.trim() == "erofs");
    let root = fs::metadata("/proc/self").is_ok_and(|meta| {
        std::os::unix::fs::MetadataExt::uid(&meta) == 0 && Path::new("/dev/loop-control").exists()
    });
    if !(kernel && root) {
        eprintln!("not run: no EROFS in this kernel, no loop devices, or not root");
        return;
    }
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    // In a mount namespace of its own, so that nothing stays mounted, whatever happens.
    let script = "mount -t erofs -o loop,ro \"$1\" \"$2\" && diff -r --no-dereference \"$3\" \"$2\" \
        && find \"$2\" -printf '%P %y %m %n %U %G %T@ %l\\n' | sort >\"$4\"";
    let listed = dir.path().join("listed");
    let paths = [&path, &mount, &tree.path().to_owned(), &listed];
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args(paths)
        .output()
        .unwrap();
    success(&output);
    let expected = Command::new("find")
        .arg(tree.path())
        .args(["-printf", "%P %y %m %n %U %G %T@ %l\\n"])
        .output()
        .unwrap();
    let sorted = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&fs::read(listed).unwrap()), sorted(&expected.stdout));
}

fn success(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn erofs_utils_find_no_fault() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    pack(tree.path(), &path);
    let into = dir.path().join("extracted");
    let option = format!("--extract={}", into.display());
    success(&Command::new("fsck.erofs").arg(option).arg(&path).output().unwrap());
    assert!(files_below(&into) == files_below(tree.path()));
    assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("sub/odd"));
}

/// An image by mkfs.erofs.
fn made(tree: &Path, dir: &Path, options: &[&str]) -> PathBuf {
    let path = dir.join("made");
    let _ = fs::remove_file(&path);
    success(&Command::new("mkfs.erofs").args(options).arg(&path).arg(tree).output().unwrap());
    path
}

#[test]
fn images_of_mkfs_are_read_or_refused_with_a_sentence() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let open = |options: &[&str]| Image::open(&made(tree.path(), dir.path(), options));
    // Its directories and links lie beside their inodes all the same.
    assert_same(&open(&["-Enoinline_data"]).unwrap(), tree.path());
    assert_same(&open(&["-Enoinline_data,force-inode-extended"]).unwrap(), tree.path());
    let error = |options: &[&str]| match open(options) {
        Err(ImageError::Format(error)) => error,
        other => panic!("{options:?}: {other:?}"),
    };
    let inline = error(&[]);
    assert!(matches!(inline, FormatError::Inline { .. }), "{inline}");
    assert!(inline.to_string().contains("mkfs.erofs -Enoinline_data"), "{inline}");
    // Something that compresses.
    fs::write(tree.path().join("sub/zeroes"), vec![0; 100_000]).unwrap();
    let compressed = error(&["-zlz4", "-Enoinline_data"]);
    assert_eq!(compressed, FormatError::Compressed { path: "sub/zeroes".into() });
    let chunked = error(&["--chunksize=4096"]);
    assert!(matches!(chunked, FormatError::Chunked { .. }), "{chunked}");
}

#[test]
fn compact_inodes_have_the_time_of_the_image() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let path = made(tree.path(), dir.path(), &["-Enoinline_data,force-inode-compact", "-T1000"]);
    let image = Image::open(&path).unwrap();
    let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    assert_eq!(image.built(), when);
    let mut reader = Reader::new();
    for (name, content) in files_below(tree.path()) {
        let file = image.open_file(&name).unwrap();
        assert_eq!(file.modified(), when);
        assert!(reader.read(&file).unwrap() == content);
    }
}

#[test]
fn links_stay_inside() {
    let tree = tempfile::tempdir().unwrap();
    let at = |name: &str| tree.path().join(name);
    fs::create_dir_all(at("sub/deep")).unwrap();
    fs::write(at("file"), "file").unwrap();
    fs::write(at("sub/deep/file"), "deep").unwrap();
    for (target, name) in [
        ("sub/deep/file", "link"),
        ("sub", "way"),
        ("../../file", "sub/deep/up"),
        ("loop", "loop"),
        ("../file", "out"),
        ("/file", "absolute"),
        ("nowhere", "dangling"),
        ("sub/deep/", "slash"),
    ] {
        symlink(target, at(name)).unwrap();
    }
    // Each doubles the links that one look-up has to follow.
    symlink("file", at("double0")).unwrap();
    for level in 1..=10 {
        let below = format!("double{}", level - 1);
        symlink(format!("sub/../{below}/../{below}"), at(&format!("double{level}"))).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    pack(tree.path(), &path);
    let image = Image::open(&path).unwrap();
    for (name, len) in [
        (&b"link"[..], 4),
        (b"way/deep/file", 4),
        (b"sub/deep/up", 4),
        (b"slash/file", 4),
        (b"./sub//deep/./file", 4),
    ] {
        assert_eq!(image.open_file(name).unwrap().len(), len);
    }
    for (name, error) in [
        (&b"loop"[..], OpenError::Forbidden),
        (b"out", OpenError::Forbidden),
        (b"absolute", OpenError::Forbidden),
        (b"sub/../file", OpenError::Forbidden),
        (b"/file", OpenError::Forbidden),
        (b"dangling", OpenError::NotFound),
        (b"missing", OpenError::NotFound),
        (b"file/", OpenError::NotFound),
        (b"file/below", OpenError::NotFound),
        (b"double10", OpenError::NotFound),
        (b"", OpenError::IsDirectory),
        (b"way", OpenError::IsDirectory),
        (b"sub/", OpenError::IsDirectory),
    ] {
        let name_text = String::from_utf8_lossy(name);
        assert_eq!(image.open_file(name).err(), Some(error), "{name_text}");
    }
}

#[test]
fn what_has_no_bytes_is_left_out_and_counted() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "file").unwrap();
    success(&Command::new("mkfifo").arg(tree.path().join("pipe")).output().unwrap());
    let plan = Plan::scan(tree.path()).unwrap();
    assert_eq!((plan.files(), plan.skipped()), (1, 1));
}

#[test]
fn a_file_that_changes_while_it_is_packed_is_an_error() {
    let tree = tempfile::tempdir().unwrap();
    let file = tree.path().join("file");
    fs::write(&file, "before").unwrap();
    let plan = Plan::scan(tree.path()).unwrap();
    fs::write(&file, "after it").unwrap();
    let out = tempfile::tempfile().unwrap();
    assert!(matches!(plan.write(&out, |_| ()), Err(PackError::Changed { path }) if path == file));
}

#[test]
fn the_same_tree_makes_the_same_image_and_another_one_another_number() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|name| dir.path().join(name));
    pack(tree.path(), &paths[0]);
    pack(tree.path(), &paths[1]);
    let (a, b) = (fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
    assert!(a == b);
    // One byte, at the same time of change and of the same length.
    let file = fs::File::options().write(true).open(tree.path().join("one")).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"!", 0).unwrap();
    file.set_modified(modified).unwrap();
    pack(tree.path(), &paths[2]);
    let [a, c] = [&paths[0], &paths[2]].map(|path| Image::open(path).unwrap());
    assert_ne!(a.uuid(), c.uuid());
    let [a, c] = [a, c].map(|image| image.stat(b"one").unwrap());
    assert_eq!((a.len, a.modified), (c.len, c.modified));
    assert_ne!(a, c);
}

#[test]
fn damaged_images_are_refused() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    pack(tree.path(), &path);
    let good = fs::read(&path).unwrap();
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = good.clone();
        change(&mut image);
        fs::write(&path, image).unwrap();
        match Image::open(&path) {
            Err(ImageError::Format(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error(&|image| image.clear()), FormatError::NotErofs);
    assert_eq!(error(&|image| image[1024] = 0), FormatError::NotErofs);
    assert_eq!(error(&|image| image[1100] ^= 1), FormatError::Checksum);
    let (len, want) = (good.len() as u64 - 4096, good.len() as u64);
    assert_eq!(error(&|image| image.truncate(len as usize)), FormatError::CutShort { len, want });
    fs::remove_file(&path).unwrap();
    assert!(matches!(Image::open(&path), Err(ImageError::Open { .. })));
}

#[test]
fn a_file_of_an_image_outlives_its_name() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    pack(tree.path(), &path);
    let image = Image::open(&path).unwrap();
    let file = image.open_file(b"sub/odd").unwrap();
    drop(image);
    let next = dir.path().join("next");
    pack(tempfile::tempdir().unwrap().path(), &next);
    fs::rename(&next, &path).unwrap();
    assert_eq!(file.check_unchanged(), Ok(()), "renaming over it is the right way");
    assert!(Reader::new().read(&file).unwrap() == bytes(16385, 16386));
}

#[test]
fn changes_in_place_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let fresh = || {
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes(10_000, 1)).unwrap();
        // Beyond the tick of the file system's clock.
        std::thread::sleep(Duration::from_millis(20));
        let file = File::open(&path).unwrap();
        assert_eq!(file.check_unchanged(), Ok(()));
        file
    };
    let changed = [Err(DiskError::Changed)];
    let outcome = |change: &dyn Fn()| {
        let file = fresh();
        change();
        [file.check_unchanged()]
    };
    assert_eq!(outcome(&|| fs::write(&path, bytes(10_000, 2)).unwrap()), changed);
    assert_eq!(outcome(&|| fs::write(&path, bytes(20_000, 2)).unwrap()), changed);
    assert_eq!(outcome(&|| fs::write(&path, b"").unwrap()), [Err(DiskError::Truncated)]);
    let keeping_the_time = || {
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, bytes(10_000, 2)).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    assert_eq!(outcome(&keeping_the_time), changed);
    let other = dir.path().join("other");
    let renaming = || {
        fs::write(&other, b"other").unwrap();
        fs::rename(&other, &path).unwrap();
    };
    assert_eq!(outcome(&renaming), [Ok(())]);
    assert_eq!(outcome(&|| fs::remove_file(&path).unwrap()), [Ok(())]);
    assert_eq!(outcome(&|| fs::hard_link(&path, dir.path().join("name")).unwrap()), [Ok(())]);
}

#[test]
fn a_window_is_a_file_of_its_own() {
    let file = File::in_memory(bytes(10_000, 3));
    let stat = |len| millstream_disk::FileStat { len, ..file.stat() };
    let window = file.window(1024, stat(5000)).unwrap();
    assert!(Reader::new().read(&window).unwrap() == bytes(10_000, 3)[1024..6024]);
    let inner = window.window(512, stat(100)).unwrap();
    assert!(Reader::new().read(&inner).unwrap() == bytes(10_000, 3)[1536..1636]);
    assert!(file.window(1, stat(10)).is_none(), "not at a sector");
    assert!(file.window(9728, stat(273)).is_none(), "beyond the end");
    assert!(window.window(4608, stat(393)).is_none(), "beyond the window's end");
    assert!(file.window(512, stat(u64::MAX)).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_tree_comes_back(
        names in prop::collection::btree_map("[a-c]{1,2}(/[a-c.!~]{1,3}x){0,3}", 0_usize..20_000, 0..40),
    ) {
        let tree = tempfile::tempdir().unwrap();
        for (name, len) in &names {
            let path = tree.path().join(name);
            // A name may be a file already where another wants a directory.
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.is_dir() {
                fs::write(&path, bytes(*len, *len as u64)).unwrap();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        pack(tree.path(), &path);
        assert_same(&Image::open(&path).unwrap(), tree.path());
    }
}
