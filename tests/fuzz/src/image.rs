//! Images in the format EROFS: whatever their records say, every file that is found lies inside.

use millstream_disk::File;
use millstream_disk::erofs::Image;

const SUPER: usize = 1024;

/// An image from its superblock on. What would keep everything else out is made right first: the
/// magic number, no checksum, no features, blocks of 512 bytes.
pub fn run(input: &[u8]) {
    let mut bytes = vec![0; SUPER];
    bytes.extend_from_slice(input);
    bytes.resize(bytes.len().max(SUPER + 128).next_multiple_of(512), 0);
    bytes[SUPER..SUPER + 4].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    bytes[SUPER + 8] &= !1;
    bytes[SUPER + 12] = 9;
    bytes[SUPER + 80..SUPER + 84].fill(0);
    bytes[SUPER + 86..SUPER + 88].fill(0);
    bytes[SUPER + 90] = 0;
    let blocks = (bytes.len() / 512) as u32;
    bytes[SUPER + 36..SUPER + 40].copy_from_slice(&blocks.to_le_bytes());
    let data = File::in_memory(bytes.clone());
    let Ok(image) = Image::read(&bytes[..], data) else { return };
    assert!(image.names() <= bytes.len(), "an entry takes more than a byte");
    // Links and names that share inodes make more paths than names; each is found by its own.
    for (path, file) in image.files().take(1000) {
        assert!(file.len() <= bytes.len() as u64);
        let again = image.open_file(&path).expect("a path that the image names");
        assert_eq!(again.stat(), file.stat());
        assert_eq!(image.stat(&path), Ok(file.stat()));
    }
    for path in [&b""[..], b".", b"a", b"a/b", b"l", b"../a", b"\xff"] {
        let _ = (image.stat(path), image.open_file(path));
    }
}
