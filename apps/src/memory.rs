//! Whether what a profile takes fits into the memory that is left. Linux would promise it all the
//! same, and end some process when it is touched.

use std::fs;
use std::path::Path;

use millstream::buf::{BLOCK_BYTES, FRAME_BYTES};

use crate::config::{Config, Huge};
use crate::error::AppError;

/// A buffer's header.
const HEADER_BYTES: u64 = 64;
const MIB: u64 = 1 << 20;

/// Refuses a profile whose buffers are larger than the memory that the machine and the control
/// groups of this process have left.
///
/// # Errors
/// [`AppError::Runtime`] names the keys that take it.
pub fn check(config: &Config) -> Result<(), AppError> {
    let free_huge = free_huge_bytes(&read("/proc/meminfo"));
    let (arena, dpdk) = ordinary_bytes(config, free_huge);
    let machine = available_bytes(&read("/proc/meminfo"));
    let groups = group_bytes(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    let Some(left) = machine.into_iter().chain(groups).min() else { return Ok(()) };
    if arena.saturating_add(dpdk) <= left {
        return Ok(());
    }
    Err(AppError::runtime(format!(
        "memory.frames and memory.blocks take {} MiB and dpdk.memory_mb takes {} MiB, but {} MiB of memory are left: lower them",
        arena.div_ceil(MIB),
        dpdk.div_ceil(MIB),
        left / MIB
    )))
}

/// What the arena and DPDK take of ordinary pages. Huge pages are reserved already, and whoever
/// insists on them is refused if there are too few.
fn ordinary_bytes(config: &Config, free_huge: u64) -> (u64, u64) {
    let mut free_huge = free_huge;
    let mut ordinary = |bytes: u64, huge: Huge| match huge {
        Huge::Never => bytes,
        Huge::Require => 0,
        Huge::Try if bytes <= free_huge => {
            free_huge -= bytes;
            0
        }
        Huge::Try => bytes,
    };
    // In the order in which they are taken.
    let dpdk = ordinary(u64::from(config.dpdk.memory_mb) * MIB, config.dpdk.huge_pages);
    let buffers =
        |count: usize, bytes: usize| (count as u64).saturating_mul(bytes as u64 + HEADER_BYTES);
    let memory = &config.memory;
    let arena =
        buffers(memory.frames, FRAME_BYTES).saturating_add(buffers(memory.blocks, BLOCK_BYTES));
    (ordinary(arena, memory.huge_pages), dpdk)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number behind `name` in a table of names and numbers.
fn field(table: &str, name: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

/// In the default size of huge pages, which the arena takes unless it is another than 2 MiB.
fn free_huge_bytes(meminfo: &str) -> u64 {
    let count = field(meminfo, "HugePages_Free:").unwrap_or(0);
    let kib = field(meminfo, "Hugepagesize:").unwrap_or(0);
    count.saturating_mul(kib.saturating_mul(1024))
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    field(meminfo, "MemAvailable:").map(|kib| kib.saturating_mul(1024))
}

/// The least that a control group (version 2) of this process, or one above it, has left. Pages of
/// files count as free: the kernel gives them up before it refuses.
fn group_bytes(own: &str, mount: &Path) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = mount.join(path);
    let groups = group.ancestors().take_while(|group| group.starts_with(mount));
    let left = groups.filter_map(|group| {
        let number = |name: &str| read(group.join(name)).trim().parse::<u64>().ok();
        let (max, used) = (number("memory.max")?, number("memory.current")?);
        let stat = read(group.join("memory.stat"));
        let of_files =
            ["active_file", "inactive_file"].iter().filter_map(|name| field(&stat, name));
        Some(max.saturating_sub(used.saturating_sub(of_files.sum())))
    });
    left.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       8 kB\nMemAvailable:       4 kB\nHugePages_Free:       64\nHugepagesize:       2048 kB\n";

    #[test]
    fn the_kernels_tables_are_read() {
        assert_eq!(available_bytes(MEMINFO), Some(4096));
        assert_eq!(free_huge_bytes(MEMINFO), 128 * MIB);
        assert_eq!(available_bytes("MemAvailable: x kB\n"), None);
        assert_eq!(free_huge_bytes(""), 0);
    }

    #[test]
    fn huge_pages_are_counted_once() {
        let mut config = Config::default();
        config.memory.frames = 0;
        config.memory.blocks = 64;
        config.dpdk.memory_mb = 64;
        let arena = 64 * (16384 + 64);
        assert_eq!(ordinary_bytes(&config, 0), (arena, 64 * MIB));
        assert_eq!(ordinary_bytes(&config, 64 * MIB), (arena, 0));
        assert_eq!(ordinary_bytes(&config, 66 * MIB), (0, 0));
        config.dpdk.huge_pages = Huge::Never;
        assert_eq!(ordinary_bytes(&config, 66 * MIB), (0, 64 * MIB));
        config.memory.huge_pages = Huge::Require;
        assert_eq!(ordinary_bytes(&config, 0), (0, 64 * MIB));
    }

    #[test]
    fn the_narrowest_group_counts_and_files_do_not() {
        let mount = tempfile::tempdir().unwrap();
        let make = |group: &str, max: &str, current: &str, stat: &str| {
            let folder = mount.path().join(group);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("memory.max"), max).unwrap();
            fs::write(folder.join("memory.current"), current).unwrap();
            fs::write(folder.join("memory.stat"), stat).unwrap();
        };
        let left = |own: &str| group_bytes(own, mount.path());
        assert_eq!(left("0::/\n"), None);
        make("a/b", "max\n", "10\n", "");
        assert_eq!(left("1:cpu:/x\n0::/a/b\n"), None);
        make("a", "1000\n", "700\n", "anon 400\nactive_file 100\ninactive_file 200\n");
        assert_eq!(left("0::/a/b\n"), Some(600));
        make("a/b", "500\n", "450\n", "inactive_file 50\n");
        assert_eq!(left("0::/a/b\n"), Some(100));
        assert_eq!(left("0::/a\n"), Some(600));
        assert_eq!(left(""), None);
    }
}
